// `npm run docs`: the API reference of the three doors, from the declarations and docstrings in dist/, as Markdown in
// build/docs/. What has no docstring is listed on stderr and makes the exit code 1.
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { SyntaxKind } from "typescript/unstable/ast";
import { API, SymbolFlags } from "typescript/unstable/sync";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const DOORS = {
  tokenring: "dist/index.d.ts",
  "tokenring/ops": "dist/ops/index.d.ts",
  "tokenring/bench": "dist/bench/index.d.ts",
};

const KINDS = new Map([
  [SyntaxKind.FunctionDeclaration, "function"],
  [SyntaxKind.ClassDeclaration, "class"],
  [SyntaxKind.InterfaceDeclaration, "interface"],
  [SyntaxKind.TypeAliasDeclaration, "type"],
  [SyntaxKind.VariableDeclaration, "const"],
]);

/** Types that a schema library writes run over pages: cut after so many characters. */
const LONGEST_CONST = 300;

/** What nobody needs a docstring for: it says what its name says everywhere. */
const PLAIN_MEMBERS = new Set(["dispose", "disposed", "constructor", "close", "name", "message"]);

/** Declaration as a reader wants it: no private parts, no `export declare`. */
function signatureOf(node) {
  const whole = node.kind === SyntaxKind.VariableDeclaration ? `const ${node.getText()};` : node.getText();
  const text = whole
    .replace(/^export /, "")
    .replace(/^declare /, "")
    .replace(/^ *(#private|private [^\n]*);\n/gm, "");
  if (node.kind !== SyntaxKind.VariableDeclaration || text.length <= LONGEST_CONST) return text;
  return `${text.slice(0, LONGEST_CONST).trimEnd()} …`;
}

/** Public members of a class that have no docstring. */
function silentMembers(node, checker) {
  if (node.kind !== SyntaxKind.ClassDeclaration) return [];
  return [...node.members].flatMap((member) => {
    const name = member.name?.getText() ?? "";
    const hidden =
      /^(private|protected) /.test(member.getText()) || name.startsWith("#") || name.startsWith("[");
    if (name === "" || hidden || PLAIN_MEMBERS.has(name)) return [];
    const symbol = checker.getSymbolAtLocation(member.name);
    return symbol && checker.getDocumentationCommentOfSymbol(symbol) !== "" ? [] : [name];
  });
}

/**
 * Every export of every door: name, kind, docstring, its tags, the declaration, the file that it is from, and the members
 * of a class that say nothing.
 */
export function readApi() {
  const config = join(root, "tsconfig.docs.json");
  const api = new API({ cwd: root });
  try {
    const project = api.updateSnapshot({ openProjects: [config] }).getProject(config);
    const { program, checker } = project;
    return Object.entries(DOORS).map(([door, file]) => {
      const module = checker.getSymbolAtLocation(program.getSourceFile(join(root, file)));
      const entries = checker.getExportsOfModule(module).flatMap((exported) => {
        const symbol = exported.flags & SymbolFlags.Alias ? checker.getAliasedSymbol(exported) : exported;
        return symbol.declarations.map((handle) => {
          const node = handle.resolve(project);
          return {
            name: exported.name,
            kind: KINDS.get(node.kind) ?? SyntaxKind[node.kind],
            doc: checker.getDocumentationCommentOfSymbol(symbol),
            tags: checker.getJsDocTagsOfSymbol(symbol).map(({ name, text }) => ({ name, text: text ?? "" })),
            signature: signatureOf(node),
            from: relative(root, node.getSourceFile().fileName)
              .replace(/^dist\//, "")
              .replace(/\.d\.ts$/, ".ts"),
            silent: silentMembers(node, checker),
          };
        });
      });
      entries.sort((a, b) => (a.name < b.name ? -1 : 1));
      return { door, entries };
    });
  } finally {
    api.close();
  }
}

/** What lacks a docstring, one line each. */
export function faultsOf(doors) {
  return doors.flatMap(({ door, entries }) =>
    entries.flatMap(({ name, kind, doc, from, silent }) => [
      ...(doc.trim() === "" ? [`${door}: ${kind} ${name} (${from}) has no docstring`] : []),
      ...silent.map((member) => `${door}: ${kind} ${name}.${member} (${from}) has no docstring`),
    ]),
  );
}

function page({ door, entries }) {
  const kinds = ["function", "class", "const", "interface", "type"];
  const contents = kinds.flatMap((kind) => {
    const names = entries
      .filter((entry) => entry.kind === kind)
      .map(({ name }) => `[${name}](#${name.toLowerCase()})`);
    return names.length === 0 ? [] : [`**${kind}** ${names.join(" · ")}`, ""];
  });
  const sections = entries.flatMap(({ name, kind, doc, tags, signature, from }) => [
    `## ${name}`,
    "",
    `${kind} of \`${from}\`. ${doc.trim()}`,
    "",
    ...tags.flatMap((tag) => [`- **${tag.name}** ${tag.text.trim()}`]),
    ...(tags.length > 0 ? [""] : []),
    "```ts",
    signature,
    "```",
    "",
  ]);
  return [`# ${door}`, "", ...contents, ...sections].join("\n");
}

function main() {
  const doors = readApi();
  const out = join(root, "build", "docs");
  mkdirSync(out, { recursive: true });
  for (const door of doors) {
    const file = join(out, `${door.door.replace("/", "-")}.md`);
    writeFileSync(file, page(door));
    console.log(`${relative(process.cwd(), file)}: ${door.entries.length} exports`);
  }
  const faults = faultsOf(doors);
  for (const fault of faults) console.error(fault);
  if (faults.length > 0) process.exitCode = 1;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) main();
