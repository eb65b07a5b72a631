// Scripted agents that act on tiny repositories: what a policy is warm-started on. An expert shows the skill; sloppy
// and confused ones the habits that training is to remove.
import { Random } from "../../random.ts";
import type { Instance } from "../types.ts";
import { TEST_COMMAND } from "./runner.ts";
import { type SimulatedSandbox, simulate } from "./simulator.ts";
import { type Bug, makeTask, type TinyTask } from "./task.ts";

export type Persona = "expert" | "sloppy" | "confused";

/** The next action's text, given what was observed last (the opening on turn 0). */
export type Script = (observation: string, turn: number) => string;

/** Probabilities, each a turn or a decision. */
interface Habits {
  /** The action has no well-formed command block. */
  formatError: number;
  /** A repair that is none. */
  wrongFix: number;
  /** The repair is put on another line. */
  wrongLine: number;
  /** Runs the tests before submitting. */
  tests: number;
  /** Goes on after a failed test. */
  retries: number;
  /** Says the last action again. */
  repeats: number;
  /** Submits whatever there is. */
  givesUp: number;
}

const HABITS: Record<Persona, Habits> = {
  expert: {
    formatError: 0.02,
    wrongFix: 0.15,
    wrongLine: 0.02,
    tests: 0.9,
    retries: 0.9,
    repeats: 0.01,
    givesUp: 0.01,
  },
  sloppy: {
    formatError: 0.15,
    wrongFix: 0.5,
    wrongLine: 0.1,
    tests: 0.45,
    retries: 0.45,
    repeats: 0.06,
    givesUp: 0.08,
  },
  confused: {
    formatError: 0.3,
    wrongFix: 0.75,
    wrongLine: 0.3,
    tests: 0.25,
    retries: 0.25,
    repeats: 0.12,
    givesUp: 0.2,
  },
};

const P_LIST = 0.4;
const MALFORMED = { fence: 0.4, bare: 0.3, two: 0.3 };

/** What demonstrators say, beside the thoughts of the bug families. */
export const THOUGHTS = {
  list: "List the files.",
  find: "Find the function.",
  open: "Open the file.",
  restore: "That was the wrong line.",
  test: "Run the tests.",
  submit: "Submit the fix.",
  giveUp: "I give up.",
} as const;

/** An action before it is written out; `done` is called when it was well-formed and so took place. */
interface Step {
  thought: string;
  command: string;
  done?: () => void;
}

/** A line to change, and the bug that it belongs to (none when it mends an edit of a wrong line). */
interface Repair {
  file: string;
  line: number;
  correct: string;
  bug: Bug | null;
}

/**
 * A demonstrator of one episode. It knows the bugs, but goes where the issue and its observations lead: it finds a
 * file before it opens it, opens it before it edits, and mends again what a failed test shows.
 */
export function demonstrator(task: TinyTask, persona: Persona, random: Random): Script {
  const habits = HABITS[persona];
  const lines = new Map([...task.files].map(([name, content]) => [name, content.split("\n")]));
  const located = new Set(task.bugs.filter((_, i) => task.named[i]).map((bug) => bug.function));
  // What the issue does not tell it learns from a failed test.
  const repairs: Repair[] = task.bugs.filter((_, i) => task.told[i]).map((bug) => ({ ...bug, bug }));
  let listed = false;
  let open: string | null = null;
  let state: "working" | "tested" | "checked" = "working";
  let last: string | null = null;

  const locate = (bug: Bug): Step => {
    const files = task.files.size - 1;
    if (!listed && random.chance(P_LIST)) {
      const done = (): void => {
        listed = true;
        if (files === 1) located.add(bug.function);
      };
      return { thought: THOUGHTS.list, command: "ls", done };
    }
    const done = (): void => {
      located.add(bug.function);
    };
    return { thought: THOUGHTS.find, command: `grep -rn "def ${bug.function}"`, done };
  };

  const mend = (repair: Repair): Step => {
    const content = lines.get(`${repair.file}.py`) as string[];
    let { line, correct: text } = repair;
    if (repair.bug !== null && random.chance(habits.wrongFix)) text = random.pick(repair.bug.wrong);
    if (random.chance(habits.wrongLine))
      line = 1 + ((line + random.below(content.length - 2)) % (content.length - 1));
    const done = (): void => {
      content[line - 1] = text;
      repairs.shift();
    };
    const thought = repair.bug?.thought ?? THOUGHTS.restore;
    return { thought, command: `edit ${line}:${line}\n${text}`, done };
  };

  const decide = (observation: string): Step => {
    const submit: Step = { thought: THOUGHTS.submit, command: "submit" };
    if (random.chance(habits.givesUp)) return { ...submit, thought: THOUGHTS.giveUp };
    if (state === "tested") {
      state = "checked";
      if (observation.includes(" failed\n") && random.chance(habits.retries)) {
        repairs.push(...unmended(task, lines));
        state = "working";
      }
    }
    const repair = repairs[0];
    if (repair !== undefined) {
      if (repair.bug !== null && !located.has(repair.bug.function)) return locate(repair.bug);
      if (open === repair.file) return mend(repair);
      const done = (): void => {
        open = repair.file;
      };
      return { thought: THOUGHTS.open, command: `open ${repair.file}.py`, done };
    }
    if (state === "checked" || !random.chance(habits.tests)) return submit;
    const done = (): void => {
      state = "tested";
    };
    return { thought: THOUGHTS.test, command: TEST_COMMAND, done };
  };

  return (observation) => {
    if (last !== null && random.chance(habits.repeats)) return last;
    const { thought, command, done } = decide(observation);
    if (random.chance(habits.formatError)) return malformed(thought, command, random);
    done?.();
    last = wellFormed(thought, command);
    return last;
  };
}

/** Lines that differ from what they must become: bugs, and edits of wrong lines. */
function unmended(task: TinyTask, lines: ReadonlyMap<string, readonly string[]>): Repair[] {
  const found: Repair[] = [];
  for (const bug of task.bugs) {
    const name = `${bug.file}.py`;
    const now = lines.get(name) as readonly string[];
    const before = (task.files.get(name) as string).split("\n");
    before.forEach((original, i) => {
      const line = i + 1;
      if (line === bug.line && now[i] !== bug.correct) found.push({ ...bug, bug });
      else if (line !== bug.line && now[i] !== original)
        found.push({ file: bug.file, line, correct: original, bug: null });
    });
  }
  return found;
}

function wellFormed(thought: string, command: string): string {
  return `${thought}\n\`\`\`command\n${command}\n\`\`\``;
}

/** The three ways to get the format wrong: the command as the fence's language, no fence, two fences. */
function malformed(thought: string, command: string, random: Random): string {
  const kind = random.weighted(MALFORMED);
  if (kind === "fence") return `${thought}\n\`\`\`${command}\n\`\`\``;
  if (kind === "bare") return `${thought}\n${command}`;
  return `${wellFormed(thought, command)}\n\`\`\`command\n${TEST_COMMAND}\n\`\`\``;
}

/** A fresh task to demonstrate on, with its sandbox and its demonstrators. */
export interface DemonstrationTask {
  task: TinyTask;
  instance: Instance;
  sandbox(): SimulatedSandbox;
  script(persona: Persona): Script;
}

/**
 * Demonstration `index`: a task of its own stream with names of the training split, so that it shares nothing with
 * held-out tasks. Equal arguments give equal demonstrations.
 */
export function demonstrationTask(seed: number, index: number): DemonstrationTask {
  const task = makeTask(seed, "demonstration", index);
  return {
    task,
    instance: task.instance,
    sandbox: () => simulate(task),
    script: (persona) =>
      demonstrator(task, persona, Random.of(seed, `tinyswe/demonstrator/${persona}`, index)),
  };
}
