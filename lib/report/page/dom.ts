// In the browser: elements without markup, so that whatever text they hold stays text. A closed function.

export function createDom() {
  type Child = Node | string | null | false;

  /** An element `tag.class1.class2` with its attributes and children; handlers by their event's name. */
  function h<K extends keyof HTMLElementTagNameMap>(
    spec: K | `${K}.${string}`,
    attributes: Record<string, string | number | boolean | ((event: Event) => void)> = {},
    ...children: Child[]
  ): HTMLElementTagNameMap[K] {
    const [tag, ...classes] = spec.split(".");
    const element = document.createElement(tag as K);
    if (classes.length > 0) element.className = classes.join(" ");
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") element.addEventListener(name, value);
      else if (value === true) element.setAttribute(name, "");
      else if (value !== false) element.setAttribute(name, String(value));
    }
    for (const child of children) if (child !== null && child !== false) element.append(child);
    return element;
  }

  /** Milliseconds as people read them. */
  function time(ms: number): string {
    if (ms < 1) return `${ms.toFixed(1)} ms`;
    if (ms < 1000) return `${Math.round(ms)} ms`;
    if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
    return `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
  }

  const whole = (value: number): string => value.toLocaleString("en");
  const signed = (value: number): string => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

  /** Characters that would move or hide other text, or steer a terminal, by their names or pictures. */
  function visible(text: string): string {
    const hidden =
      // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is to be found
      /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
    if (text.search(hidden) < 0) return text;
    return text.replace(hidden, (character) => {
      const code = character.charCodeAt(0);
      if (code < 0x20) return String.fromCharCode(0x2400 + code);
      if (code === 0x7f) return "\u2421";
      return `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
    });
  }

  /** One line for a caption: control characters, spaces and line breaks by their signs. */
  function oneLine(text: string, most = 60): string {
    const line = visible(text).replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "·");
    return line.length > most ? `${line.slice(0, most)}…` : line;
  }

  /** Lets the browser paint and answer before long work goes on. */
  const breathe = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 0));

  return { h, time, whole, signed, visible, oneLine, breathe };
}
