// What an agent changed, as shell text for the resident shell.
import { quote } from "./host.ts";

/** No hooks, no helpers, no configuration: git reads the base's own directory and the files of the tree. */
function git(program: string, base: string, workdir: string, attributes = "/dev/null"): string {
  return [
    ...[program, "--no-pager", `--git-dir=${base}`, `--work-tree=${workdir}`],
    ...["-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "core.untrackedCache=false"],
    ...[
      "-c",
      "core.autocrlf=false",
      "-c",
      `core.attributesFile=${attributes}`,
      "-c",
      "core.excludesFile=/dev/null",
    ],
  ]
    .map(quote)
    .join(" ");
}

/**
 * Prints the unified diff of the working tree against `commit`. One git process where nothing but tracked files is
 * there; with `index`, a writable copy of the base's index, new files count as well at the price of a second one.
 * The subshell shuts out what the agent exported.
 */
export function diffCommand(options: {
  git: string;
  base: string;
  workdir: string;
  commit: string;
  index: string | null;
  /** With `index`: where git may write the one object that an intent to add needs; the base is read-only. */
  objects: string | null;
  /** A file of attributes that hold where the tree says nothing else. */
  attributes: string | null;
  /** Whether `index` has to be filled with the commit's tree first. */
  emptyIndex: boolean;
}): string {
  const call = git(options.git, options.base, options.workdir, options.attributes ?? undefined);
  const steps = [
    `builtin cd ${quote(options.workdir)}`,
    // biome-ignore lint/suspicious/noTemplateCurlyInString: this is bash's own expansion.
    "builtin unset ${!GIT_@} ${!LD_@} XDG_CONFIG_HOME",
    "builtin export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_OPTIONAL_LOCKS=0 LC_ALL=C.UTF-8",
  ];
  if (options.index !== null && options.objects !== null) {
    const base = quote(`${options.base}/objects`);
    steps.push(`builtin export GIT_INDEX_FILE=${quote(options.index)}`);
    steps.push(
      `builtin export GIT_OBJECT_DIRECTORY=${quote(options.objects)} GIT_ALTERNATE_OBJECT_DIRECTORIES=${base}`,
    );
    if (options.emptyIndex) steps.push(`${call} read-tree ${options.commit} >/dev/null 2>&1`);
    // Intent to add: new files get into the index by name alone, but for what cannot be added (say, a repository
    // without commits inside the tree).
    steps.push(`{ ${call} add --intent-to-add --ignore-errors -- . >/dev/null 2>&1 || :; }`);
  }
  const diff = `${call} diff --no-color --no-ext-diff --no-textconv --no-renames --binary --src-prefix=a/ --dst-prefix=b/`;
  return `( ${steps.join(" && ")} && builtin exec ${diff} ${options.commit} -- 2>/dev/null )`;
}

/** Succeeds when the base itself is sound, so that a failing diff is the tree's fault. */
export function checkBaseCommand(options: {
  git: string;
  base: string;
  workdir: string;
  commit: string;
}): string {
  const call = git(options.git, options.base, options.workdir);
  return `${call} cat-file -e ${quote(`${options.commit}^{tree}`)} >/dev/null 2>&1`;
}
