// Which files a unified git diff touches.

export interface TouchedFile {
  path: string;
  /** Whether the diff makes the file. */
  added: boolean;
  deleted: boolean;
}

/** In the order of the diff; a rename counts as the old path deleted and the new one added. */
export function touchedFiles(patch: string): TouchedFile[] {
  const files: TouchedFile[] = [];
  for (const section of patch.split(/^(?=diff --git )/m)) {
    // Only the head: a changed line may read like a file name.
    const head = section.split(/^@@ /m, 1)[0] ?? "";
    const from = /^--- (.+)$/m.exec(head)?.[1];
    const to = /^\+\+\+ (.+)$/m.exec(head)?.[1];
    const renameFrom = /^(?:rename|copy) from (.+)$/m.exec(head);
    const renameTo = /^(?:rename|copy) to (.+)$/m.exec(head)?.[1];
    if (renameFrom && renameTo) {
      if (head.includes("\nrename from ")) {
        files.push({ path: unquote(renameFrom[1] ?? ""), added: false, deleted: true });
      }
      files.push({ path: unquote(renameTo), added: true, deleted: false });
      continue;
    }
    if (from !== undefined && to !== undefined) {
      const added = from.trim() === "/dev/null";
      const deleted = to.trim() === "/dev/null";
      files.push({ path: stripSide(unquote(added ? to : from)), added, deleted });
      continue;
    }
    // Empty files, modes and binary files have no --- and +++ lines; both names on the first line are the same.
    const both = /^diff --git (.+)$/m.exec(head)?.[1];
    if (both === undefined) continue;
    const half = both.slice(0, (both.length - 1) / 2);
    const path = stripSide(unquote(half));
    files.push({ path, added: /^new file mode/m.test(head), deleted: /^deleted file mode/m.test(head) });
  }
  return files;
}

function stripSide(path: string): string {
  return path.replace(/^[ab]\//, "");
}

/** Takes off git's C-style quoting and a date behind a tab. */
function unquote(name: string): string {
  const quoted = /^"((?:[^"\\]|\\.)*)"/.exec(name)?.[1];
  if (quoted === undefined) return name.replace(/\t.*$/, "").replace(/\r$/, "");
  const bytes: number[] = [];
  const escapes: Readonly<Record<string, number>> = {
    a: 7,
    b: 8,
    t: 9,
    n: 10,
    v: 11,
    f: 12,
    r: 13,
    '"': 34,
    "\\": 92,
  };
  for (const part of quoted.match(/\\[0-7]{3}|\\.|[^\\]/gsu) ?? []) {
    if (/^\\[0-7]{3}$/.test(part)) bytes.push(Number.parseInt(part.slice(1), 8));
    else if (part.startsWith("\\")) bytes.push(escapes[part.slice(1)] ?? part.charCodeAt(1));
    else bytes.push(...Buffer.from(part));
  }
  return Buffer.from(bytes).toString("utf8");
}
