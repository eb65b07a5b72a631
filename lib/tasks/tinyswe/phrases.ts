// The strings that the demo's tokenizer holds as single tokens beside the bytes: an episode of 700 bytes becomes one of
// under 200 tokens, and a name is the same two tokens whatever stands before it.
import { THOUGHTS } from "./demonstrator.ts";
import { FAMILIES, TRAINED } from "./families.ts";
import { SYLLABLES } from "./names.ts";
import { TEST_COMMAND } from "./runner.ts";

// No phrase may begin inside a name or swallow the begin of one: none starts with two syllables of a name and goes
// on, and those that stand before names end in what is no letter.
const ISSUE = [
  " returns ",
  ", expected ",
  ". See ",
  ".py.",
  " It should use ",
  " It should use index ",
  " It should return ",
  " It should start at ",
  " It should say ",
  " It should add.",
  " It should subtract.",
  " It should multiply.",
  " The order is wrong.",
  " A not is missing.",
  " The default should be ",
  " The condition is inverted.",
  " The return is missing.",
];

const SHELL = [
  "\n(Current directory: /repo, current file: ",
  "(Current directory: /repo, current file: ",
  "none) bash-$",
  ".py) bash-$",
  ") bash-$",
  ".py:",
  "test.py",
  "No such file or directory",
  "bash: line ",
  ": command not found",
  "(exit code ",
];

const TOOLS = [
  "[File: ",
  ".py (",
  " lines total)]\n",
  "File updated.\n",
  "Error: no command.",
  "Error: more than one command.",
  "Error: ",
  "there is no file ",
  "no file is open; use open FILE first.",
  "Error: line ",
  " is outside the file, which has ",
  " lines.",
  " is no line range; write START:END, as in 3:5.",
];

const ACTIONS = [
  "\n```command\n",
  "\n```",
  "\n```edit ",
  "\n```open ",
  "\n```submit",
  "\n```ls",
  "open ",
  "edit ",
  'grep -rn "def ',
  "submit",
  "ls",
  TEST_COMMAND,
  ".py",
];

const TESTS = ["FAIL ", "): got ", " failed", "OK"];

const ERRORS = [
  "IndentationError",
  "IndexError",
  "KeyError",
  "NameError",
  "SyntaxError",
  "TimeoutError",
  "TypeError",
  "UnboundLocalError",
];

const PYTHON = [
  ":def ",
  "\ndef ",
  "):\n",
  "):",
  ":    return ",
  "\n    return ",
  ":        ",
  ":    for ",
  ":    ",
  "\n    ",
  " in ",
  " + ",
  " - ",
  " * ",
  " < ",
  " <= ",
  " > ",
  " >= ",
  " == ",
  " != ",
  " = ",
  " and ",
  " or ",
  "not ",
  " if ",
  " else ",
  ", ",
  "True",
  "False",
  "None",
  "['",
  "']",
  "{'",
  "': ",
];

const thoughts = [...TRAINED.map((name) => FAMILIES[name].thought), ...Object.values(THOUGHTS)];

/** All phrases, syllables first, none twice. Matched leftmost, and there the longest. */
export const PHRASES: readonly string[] = [
  ...new Set([
    ...SYLLABLES,
    ...thoughts,
    ...ISSUE,
    ...SHELL,
    ...TOOLS,
    ...ACTIONS,
    ...TESTS,
    ...ERRORS,
    ...PYTHON,
  ]),
];
