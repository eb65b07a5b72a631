// The prompt that a software-engineering agent meets. Other task sets bring their own.
import type { Instance, PromptTemplate } from "../tasks/types.ts";
import { shellPrompt } from "./observation.ts";
import type { Tool } from "./tool.ts";
import { defaultTools } from "./tools.ts";

export interface SweTemplateOptions {
  tools?: readonly Tool[];
  /** Where the repository lies inside the sandbox. */
  workdir?: string;
  /** Lines of the window on an open file. */
  window?: number;
}

/**
 * The `swe` template: a system prompt whose tool section is made from the table of tools, and the issue as the first
 * message, ended by the shell prompt as every observation is.
 */
export function sweTemplate(options: SweTemplateOptions = {}): PromptTemplate {
  const tools = options.tools ?? defaultTools;
  const workdir = options.workdir ?? "/repo";
  return {
    name: "swe",
    system: sections([
      ["", ROLE],
      ["SPECIAL TOOLS", toolSection(tools, options.window ?? 100)],
      ["ENVIRONMENT RESPONSE", ENVIRONMENT],
      ["YOUR RESPONSE", RESPONSE],
      ["HANDLING TESTS", TESTS],
      ["USEFUL ADVICE", ADVICE],
    ]),
    opening: (instance: Instance) =>
      `${sections([
        ["ISSUE DESCRIPTION", instance.problem_statement.trim()],
        ["ADDITIONAL ADVICE", GIT],
        ["CHECKLIST", CHECKLIST],
      ])}\n\nThe repository is uploaded and your shell is in its root, ${workdir}.\n${shellPrompt(workdir, null)}`,
  };
}

function sections(parts: readonly (readonly [title: string, text: string])[]): string {
  return parts.map(([title, text]) => (title === "" ? text : `# ${title}\n${text}`)).join("\n\n");
}

function toolSection(tools: readonly Tool[], window: number): string {
  const list = tools.map((tool) => `\`${tool.signature}\`\n  ${tool.help}`);
  return [
    "Besides every non-interactive shell command you have these. An opened file is shown through a window of " +
      `${window} lines.`,
    ...list,
    "Programs that wait for input (vim, nano, less, python without a script) are refused. Each tool explains itself " +
      "with --help.",
  ].join("\n\n");
}

const ROLE =
  "You are a software engineer who works alone in a shell. You are given an issue of a code repository and change " +
  "the repository so that the issue is resolved. Nobody answers questions: explore, decide and act by yourself.";

const ENVIRONMENT =
  "After each of your commands you see what it printed, then a prompt that says where you are:\n" +
  "(Current directory: <directory>, current file: <open file, or none>) bash-$\n" +
  "Directory, environment variables and the open file last from one command to the next.";

const RESPONSE =
  "First think: what you learned, what you do next and why. Then give exactly one command in a block of its own. A " +
  "reply with no such block, or with more than one, runs nothing. For example:\n\n" +
  "The traceback points at the parser, so I look at where it reads the header.\n" +
  "```command\nopen src/parser.py 120\n```\n\n" +
  "and, to change lines 120 and 121:\n\n" +
  "The length must be checked before the index is used.\n" +
  "```command\nedit 120:121 << 'EOF'\n    if len(parts) < 2:\n        return None\nEOF\n```";

const TESTS =
  "You may run the repository's tests. Do not change them and do not add to them: hidden tests decide. To try " +
  "something out, write a script of your own, and delete it before you submit.";

const ADVICE = [
  "Look around first: the layout, the code that the issue names, its callers.",
  "Reproduce the problem before you change anything.",
  "Make the smallest change that repairs the cause, not only the example in the issue.",
  "After an edit read what you wrote: indentation and leftover lines are the usual faults.",
  "Run your reproduction again, try edge cases, then run the tests that touch what you changed.",
]
  .map((line, index) => `${index + 1}. ${line}`)
  .join("\n");

const GIT =
  "Git is there for you (git diff, git log, git checkout of a file). `submit` hands in the working tree as it is, " +
  "new files included: no commit is needed.";

const CHECKLIST =
  "Before you submit, go through this list in your reasoning and say for each point how you know:\n" +
  [
    "the problem is reproduced",
    "the change repairs it",
    "edge cases are handled",
    "the existing tests still pass",
  ]
    .map((line) => `- [ ] ${line}`)
    .join("\n");
