// Finds added tokens in text as Hugging Face's tokenizers does: leftmost match first, the longest at that place.

export interface AddedToken {
  id: number;
  content: string;
  special: boolean;
  /** Only where neither neighbour is a word character. */
  singleWord: boolean;
  /** The token swallows white space on this side. */
  leftStrip: boolean;
  rightStrip: boolean;
}

interface Node {
  next: Map<number, Node>;
  token: AddedToken | null;
}

const WORD = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}]/u;

export class AddedTokenSplitter {
  #root: Node = { next: new Map(), token: null };

  constructor(tokens: readonly AddedToken[]) {
    for (const token of tokens) {
      let node = this.#root;
      for (let i = 0; i < token.content.length; i++) {
        const unit = token.content.charCodeAt(i);
        let next = node.next.get(unit);
        if (!next) {
          next = { next: new Map(), token: null };
          node.next.set(unit, next);
        }
        node = next;
      }
      if (token.content.length > 0) node.token = token;
    }
  }

  /** Calls `text(from, to)` for stretches without added tokens and `added(id)` for added tokens, left to right. */
  split(
    text: string,
    special: boolean,
    onText: (from: number, to: number) => void,
    onAdded: (id: number) => void,
  ): void {
    const root = this.#root.next;
    const n = text.length;
    let from = 0;
    let i = 0;
    while (i < n) {
      let node = root.get(text.charCodeAt(i));
      if (node === undefined) {
        i++;
        continue;
      }
      let token = node.token;
      let end = i + 1;
      for (let j = i + 1; j < n; j++) {
        node = node.next.get(text.charCodeAt(j));
        if (node === undefined) break;
        if (node.token) {
          token = node.token;
          end = j + 1;
        }
      }
      if (token === null) {
        i++;
        continue;
      }
      // A match that does not count is skipped whole: nothing shorter is looked for inside it.
      if ((token.special && !special) || (token.singleWord && !standsAlone(text, i, end))) {
        i = end;
        continue;
      }
      let start = i;
      if (token.leftStrip) while (start > from && isSpace(text, start - 1)) start--;
      if (token.rightStrip) while (end < n && isSpace(text, end)) end++;
      if (start > from) onText(from, start);
      onAdded(token.id);
      from = i = end;
    }
    if (n > from) onText(from, n);
  }
}

function isSpace(text: string, at: number): boolean {
  return text.charAt(at).trim() === "";
}

function standsAlone(text: string, start: number, end: number): boolean {
  return (
    (start === 0 || !WORD.test(text.charAt(start - 1))) &&
    (end === text.length || !WORD.test(text.charAt(end)))
  );
}
