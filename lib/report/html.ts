// HTML that cannot be injected into: everything put into a template is text unless it came from a template.

export class Html {
  readonly text: string;
  constructor(text: string) {
    this.text = text;
  }
}

export type Content = Html | string | number | null | undefined | false | readonly Content[];

const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

/** `text` as HTML text or as the value of a quoted attribute. */
export function escapeHtml(text: string): string {
  // Control characters that HTML forbids are shown by their code instead of vanishing.
  return text
    .replace(/[&<>"']/g, (character) => ENTITIES[character] as string)
    .replace(
      // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is to be found
      /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\ufffe\uffff]/g,
      (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`,
    );
}

function render(value: Content): string {
  if (value === null || value === undefined || value === false) return "";
  if (value instanceof Html) return value.text;
  if (typeof value === "object") return value.map(render).join("");
  return escapeHtml(String(value));
}

/** Tagged template: html`<b>${anything}</b>`. Values are escaped; arrays are joined; null and false are nothing. */
export function html(strings: TemplateStringsArray, ...values: Content[]): Html {
  return new Html(String.raw({ raw: strings }, ...values.map(render)));
}
