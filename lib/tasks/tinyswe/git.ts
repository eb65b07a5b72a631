// A pristine git repository with one commit, written without git: one pack, one branch, an index, nothing else.
import { createHash } from "node:crypto";
import { mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { crc32, deflateSync } from "node:zlib";

const MESSAGE = "Initial commit\n";
const IDENTITY = "tinyswe <tinyswe@localhost> 1735689600 +0000";
const BRANCH = "refs/heads/main";

// Type numbers in a pack.
const TYPES = { commit: 1, tree: 2, blob: 3 } as const;

interface GitObject {
  type: keyof typeof TYPES;
  content: Buffer;
  hash: Buffer;
}

function gitObject(type: keyof typeof TYPES, content: Buffer): GitObject {
  const hash = createHash("sha1").update(`${type} ${content.length}\0`).update(content).digest();
  return { type, content, hash };
}

/** The hash that git gives to a file's content, in hexadecimal. */
export function blobHash(content: string): string {
  return gitObject("blob", Buffer.from(content)).hash.toString("hex");
}

/** The objects of a repository whose only commit holds `files` (flat, no directories): blobs, tree, commit. */
function objectsOf(files: ReadonlyMap<string, string>): { blobs: Map<string, GitObject>; all: GitObject[] } {
  const blobs = new Map<string, GitObject>();
  for (const name of [...files.keys()].sort()) {
    blobs.set(name, gitObject("blob", Buffer.from(files.get(name) as string)));
  }
  const entries = [...blobs].flatMap(([name, blob]) => [Buffer.from(`100644 ${name}\0`), blob.hash]);
  const tree = gitObject("tree", Buffer.concat(entries));
  const text = `tree ${tree.hash.toString("hex")}\nauthor ${IDENTITY}\ncommitter ${IDENTITY}\n\n${MESSAGE}`;
  return { blobs, all: [gitObject("commit", Buffer.from(text)), tree, ...blobs.values()] };
}

/** Hash of the commit that `writeRepository` makes of `files`. */
export function commitHash(files: ReadonlyMap<string, string>): string {
  return (objectsOf(files).all[0] as GitObject).hash.toString("hex");
}

/**
 * Writes `files` and a `.git` with one commit of them on branch `main` to `directory`, which must not exist: it
 * appears complete or not at all. Formats: git's pack-format, index-format and gitrepository-layout documents.
 */
export function writeRepository(directory: string, files: ReadonlyMap<string, string>): void {
  const { blobs, all } = objectsOf(files);
  const head = all[0] as GitObject;
  const { pack, index, name } = packOf(all);
  const building = `${directory}.${process.pid}.part`;
  // Left by a process that died and had the same number.
  rmSync(building, { recursive: true, force: true });
  const git = join(building, ".git");
  mkdirSync(join(git, "objects", "pack"), { recursive: true });
  mkdirSync(join(git, "refs"));
  writeFileSync(join(git, "HEAD"), `ref: ${BRANCH}\n`);
  writeFileSync(join(git, "config"), "[core]\n\trepositoryformatversion = 0\n\tbare = false\n");
  writeFileSync(join(git, "packed-refs"), `${head.hash.toString("hex")} ${BRANCH}\n`);
  writeFileSync(join(git, "index"), stagingOf(blobs));
  writeFileSync(join(git, "objects", "pack", `pack-${name}.pack`), pack);
  writeFileSync(join(git, "objects", "pack", `pack-${name}.idx`), index);
  for (const [file, content] of files) writeFileSync(join(building, file), content);
  try {
    renameSync(building, directory);
  } catch (error) {
    // Another process was faster; its repository is the same.
    const { code } = error as NodeJS.ErrnoException;
    rmSync(building, { recursive: true });
    if (code !== "ENOTEMPTY" && code !== "EEXIST") throw error;
  }
}

const sha1 = (content: Buffer): Buffer => createHash("sha1").update(content).digest();

function uint32(value: number): Buffer {
  const out = Buffer.allocUnsafe(4);
  out.writeUInt32BE(value >>> 0);
  return out;
}

/** A pack of the objects (version 2) and its index (version 2). */
function packOf(objects: readonly GitObject[]): { pack: Buffer; index: Buffer; name: string } {
  const header = Buffer.concat([Buffer.from("PACK"), uint32(2), uint32(objects.length)]);
  let offset = header.length;
  const packed = objects.map(({ type, content, hash }) => {
    const bytes = Buffer.concat([
      entryHeader(TYPES[type], content.length),
      deflateSync(content, { level: 1 }),
    ]);
    const entry = { hash, bytes, offset, crc: crc32(bytes) };
    offset += bytes.length;
    return entry;
  });
  const body = Buffer.concat([header, ...packed.map((entry) => entry.bytes)]);
  const checksum = sha1(body);

  packed.sort((a, b) => Buffer.compare(a.hash, b.hash));
  const fanout = Buffer.alloc(1024);
  for (let byte = 0; byte < 256; byte++) {
    fanout.writeUInt32BE(packed.filter((entry) => (entry.hash[0] as number) <= byte).length, byte * 4);
  }
  const table = Buffer.concat([
    Buffer.from([0xff, 0x74, 0x4f, 0x63]),
    uint32(2),
    fanout,
    ...packed.map((entry) => entry.hash),
    ...packed.map((entry) => uint32(entry.crc)),
    ...packed.map((entry) => uint32(entry.offset)),
    checksum,
  ]);
  return {
    pack: Buffer.concat([body, checksum]),
    index: Buffer.concat([table, sha1(table)]),
    name: checksum.toString("hex"),
  };
}

/** Type and size of a packed object: four bits of size beside the type, then seven a byte. */
function entryHeader(type: number, size: number): Buffer {
  const bytes = [(type << 4) | (size & 15)];
  for (let rest = size >> 4; rest > 0; rest >>= 7) {
    bytes[bytes.length - 1] = (bytes.at(-1) as number) | 0x80;
    bytes.push(rest & 0x7f);
  }
  return Buffer.from(bytes);
}

/** The index (version 2). Times and inode are unknown here; git looks at the content once and fills them in. */
function stagingOf(blobs: ReadonlyMap<string, GitObject>): Buffer {
  const entries = [...blobs].map(([name, blob]) => {
    const entry = Buffer.alloc(Math.ceil((62 + name.length + 1) / 8) * 8);
    entry.writeUInt32BE(0o100644, 24);
    entry.writeUInt32BE(blob.content.length, 36);
    blob.hash.copy(entry, 40);
    entry.writeUInt16BE(name.length, 60);
    entry.write(name, 62, "latin1");
    return entry;
  });
  const body = Buffer.concat([Buffer.from("DIRC"), uint32(2), uint32(entries.length), ...entries]);
  return Buffer.concat([body, sha1(body)]);
}
