// Where the configs of several runs differ, key by key.

export interface ConfigDifference {
  /** Path of the key, such as "stages.1.clipHigh". */
  key: string;
  /** One for each config; null where it has no such key. */
  values: (string | null)[];
}

function leaves(value: unknown, path: string, out: Map<string, string>): void {
  if (typeof value === "object" && value !== null && Object.keys(value).length > 0) {
    for (const [key, inner] of Object.entries(value))
      leaves(inner, path === "" ? key : `${path}.${key}`, out);
  } else out.set(path, JSON.stringify(value) ?? "undefined");
}

/** The keys whose values are not the same in all of `configs` (plain JSON values), in the order of the first. */
export function configDifferences(configs: readonly unknown[]): ConfigDifference[] {
  const flat = configs.map((config) => {
    const out = new Map<string, string>();
    leaves(config, "", out);
    return out;
  });
  const keys = new Set(flat.flatMap((one) => [...one.keys()]));
  return [...keys]
    .map((key) => ({ key, values: flat.map((one) => one.get(key) ?? null) }))
    .filter(({ values }) => new Set(values).size > 1);
}
