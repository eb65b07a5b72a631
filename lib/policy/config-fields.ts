// Fields of a parsed config.json. Every refusal names the file and the key.
import { TokenringError } from "../errors.ts";

export class Fields {
  /** The file's name in messages. */
  readonly path: string;
  /** In front of keys in messages: "rope_scaling.". */
  readonly #prefix: string;
  readonly #json: Readonly<Record<string, unknown>>;

  /** @throws ERR_TOKENRING_CHECKPOINT when `json` is no object. */
  constructor(json: unknown, path: string, prefix = "") {
    if (typeof json !== "object" || json === null || Array.isArray(json)) {
      const what =
        prefix === "" ? "must hold one JSON object" : `${prefix.slice(0, -1)} must be a JSON object`;
      throw new TokenringError("ERR_TOKENRING_CHECKPOINT", `${path}${prefix === "" ? "" : ":"} ${what}`, {
        details: { path },
      });
    }
    this.#json = json as Record<string, unknown>;
    this.path = path;
    this.#prefix = prefix;
  }

  /** The value; null counts as absent, as Hugging Face has it. */
  get(name: string): unknown {
    return this.#json[name] ?? undefined;
  }

  /** The keys whose value is not null. */
  keys(): string[] {
    return Object.keys(this.#json).filter((name) => this.get(name) !== undefined);
  }

  object(name: string): Fields | undefined {
    const value = this.get(name);
    return value === undefined ? undefined : new Fields(value, this.path, `${this.#prefix}${name}.`);
  }

  count(name: string, otherwise?: number): number {
    const value = this.get(name) ?? otherwise;
    if (!Number.isInteger(value) || (value as number) < 1) {
      this.refuse(name, this.#found(value), "a positive integer is needed");
    }
    return value as number;
  }

  positive(name: string, otherwise?: number): number {
    const value = this.get(name) ?? otherwise;
    if (typeof value !== "number" || !Number.isFinite(value) || value <= 0) {
      this.refuse(name, this.#found(value), "a positive number is needed");
    }
    return value;
  }

  boolean(name: string, otherwise: boolean): boolean {
    const value = this.get(name) ?? otherwise;
    if (typeof value !== "boolean") this.refuse(name, this.#found(value), "true or false is needed");
    return value;
  }

  /** Lets pass what is absent or `supported`; refuses the rest, with the reason. */
  only(name: string, supported: unknown, why: string): void {
    const value = this.get(name);
    if (value !== undefined && value !== supported) {
      this.refuse(
        name,
        `is ${JSON.stringify(value)}`,
        `only ${JSON.stringify(supported)} is supported: ${why}`,
      );
    }
  }

  refuse(name: string, found: string, todo: string): never {
    const field = `${this.#prefix}${name}`;
    throw new TokenringError("ERR_TOKENRING_CHECKPOINT", `${this.path}: ${field} ${found}; ${todo}`, {
      details: { path: this.path, field },
    });
  }

  #found(value: unknown): string {
    return value === undefined ? "is missing" : `is ${JSON.stringify(value)}`;
  }
}
