// A file that is there while somebody reads it.
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

export async function withFile<T>(text: string, read: (file: string) => Promise<T>): Promise<T> {
  const directory = await mkdtemp(join(tmpdir(), "tokenring-file-"));
  try {
    const file = join(directory, "file");
    await writeFile(file, text);
    return await read(file);
  } finally {
    await rm(directory, { recursive: true });
  }
}
