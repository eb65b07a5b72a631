// The manifests of deploy/, held against Kubernetes' own schemas; unknown fields, which those let pass, are found by
// looking which fields the schema never read.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Job } from "kubernetes-models/batch/v1";
import { ConfigMap, PersistentVolumeClaim, Service } from "kubernetes-models/v1";
import { describe, expect, it } from "vitest";
import { parseAllDocuments } from "yaml";

const folder = fileURLToPath(new URL("../../deploy/kubernetes", import.meta.url));
type Manifest = { kind: string; metadata: { name: string } } & Record<string, unknown>;
const kinds = { Job, ConfigMap, PersistentVolumeClaim, Service } as unknown as Record<
  string,
  { prototype: { validate(this: unknown): void } }
>;

/** The fields of `value` that `look` does not read, by their paths. */
function unread(value: unknown, look: (watched: unknown) => void): string[] {
  const seen = new Set<string>();
  const all: string[] = [];
  const watch = (at: unknown, path: string): unknown => {
    if (typeof at !== "object" || at === null) return at;
    for (const key of Object.keys(at)) all.push(`${path}.${key}`);
    const copy = Object.fromEntries(
      Object.entries(at).map(([key, of]) => [key, watch(of, `${path}.${key}`)]),
    );
    const inner = Array.isArray(at) ? Object.assign([], copy) : copy;
    return new Proxy(inner, {
      get(target, key) {
        if (typeof key === "string" && Object.hasOwn(at, key)) seen.add(`${path}.${key}`);
        return Reflect.get(target, key);
      },
    });
  };
  look(watch(value, ""));
  return all.filter((path) => !seen.has(path));
}

/** What is wrong with a manifest; empty if nothing is. */
function faults(manifest: Manifest): string[] {
  const kind = kinds[manifest.kind];
  if (!kind) return [`no schema of ${manifest.kind}`];
  try {
    // apiVersion and kind are the class's own.
    const { apiVersion: _, kind: __, ...rest } = manifest;
    const unknown = unread(rest, (watched) => {
      const model = new (kind as unknown as new (data: unknown) => { validate(): void })(rest);
      Object.assign(model, watched);
      model.validate();
    });
    return unknown.map((path) => `unknown field ${path}`);
  } catch (error) {
    return [(error as Error).message];
  }
}

const manifests = readdirSync(folder)
  .filter((file) => file.endsWith(".yaml"))
  .flatMap((file) =>
    parseAllDocuments(readFileSync(join(folder, file), "utf8")).map((document) => {
      expect(document.errors).toEqual([]);
      return document.toJS() as Manifest;
    }),
  );
const named = (kind: string): Manifest => manifests.find((one) => one.kind === kind) as Manifest;

describe("deploy/kubernetes", () => {
  it.each(manifests.map((one) => [`${one.kind} ${one.metadata.name}`, one] as const))(
    "%s is what Kubernetes takes",
    (_, manifest) => {
      expect(faults(manifest)).toEqual([]);
    },
  );

  it("would be refused with a misspelt field or a wrong type", () => {
    const job = structuredClone(named("Job")) as unknown as { spec: Record<string, unknown> };
    job.spec.complletions = 16;
    expect(faults(job as unknown as Manifest)).toEqual(["unknown field .spec.complletions"]);
    job.spec.completions = "sixteen";
    expect(faults(job as unknown as Manifest).join()).toMatch(/completions.*integer/);
  });

  it("agrees with itself about names, ports and the number of ranks", () => {
    const job = named("Job") as unknown as {
      metadata: { name: string };
      spec: {
        completions: number;
        parallelism: number;
        template: {
          metadata: { labels: Record<string, string> };
          spec: {
            subdomain: string;
            containers: {
              env: { name: string; value?: string }[];
              resources: { limits: Record<string, number> };
            }[];
            volumes: { persistentVolumeClaim?: { claimName: string }; configMap?: { name: string } }[];
          };
        };
      };
    };
    const { template, completions, parallelism } = job.spec;
    const [ranks] = template.spec.containers;
    const env = Object.fromEntries((ranks?.env ?? []).map(({ name, value }) => [name, value]));
    const service = named("Service") as unknown as {
      metadata: { name: string };
      spec: { selector: Record<string, string>; ports: { port: number }[] };
    };
    expect(parallelism).toBe(completions);
    expect(Number(env.NODES)).toBe(completions);
    expect(Number(env.GPUS)).toBe(ranks?.resources.limits["nvidia.com/gpu"]);
    // Pods of an Indexed Job are called after it and their number.
    expect(env.MASTER_ADDR).toBe(`${job.metadata.name}-0.${template.spec.subdomain}`);
    expect(template.spec.subdomain).toBe(service.metadata.name);
    expect(Number(env.MASTER_PORT)).toBe(service.spec.ports[0]?.port);
    expect(template.metadata.labels).toMatchObject(service.spec.selector);
    const { volumes } = template.spec;
    expect(volumes.find((one) => one.persistentVolumeClaim)?.persistentVolumeClaim?.claimName).toBe(
      named("PersistentVolumeClaim").metadata.name,
    );
    expect(volumes.find((one) => one.configMap)?.configMap?.name).toBe(named("ConfigMap").metadata.name);
  });
});
