// test.py of a tiny repository: the calls and the program that makes them and prints what fails. Verification makes the
// same calls in another way (judge.ts).
import type { Value } from "./language.ts";
import { repr } from "./language.ts";

/** A call that a test makes and what it must return. */
export interface TestCall {
  /** File that defines the function, without `.py`. */
  module: string;
  name: string;
  args: readonly Value[];
  expected: Value;
}

export const TEST_FILE = "test.py";

/** What agents run. */
export const TEST_COMMAND = `python ${TEST_FILE}`;

/** Source text of a call: `tepa(True, False)`. */
export function printCall(call: Pick<TestCall, "name" | "args">): string {
  return `${call.name}(${call.args.map(repr).join(", ")})`;
}

/** Name of a test as a log parser finds it: no spaces. */
export function testId(call: TestCall): string {
  return `test.py::${printCall(call).replaceAll(" ", "")}`;
}

// A call may take STEPS lines: an endless loop is a failed test on every machine at the same point. What happens
// between two lines (10 ** 10 ** 9) or on import is left to the sandbox's limit of CPU time.
export const RUN = `import sys

STEPS = 10000


def run(module, call):
    left = STEPS

    def trace(frame, event, argument):
        nonlocal left
        left -= 1
        if left < 0:
            raise TimeoutError
        return trace

    try:
        scope = vars(__import__(module))
        sys.settrace(trace)
        return True, repr(eval(call, scope))
    except BaseException as error:
        return False, type(error).__name__
    finally:
        sys.settrace(None)
`;

const PROGRAM = `]

${RUN}

def main():
    sys.dont_write_bytecode = True
    failed = 0
    for module, call, expected in CALLS:
        result = run(module, call)
        if result != (True, repr(expected)):
            failed += 1
            print(f"FAIL {call}: got {result[1]}, expected {expected!r}")
    print(f"{failed} failed" if failed else "OK")
    sys.exit(failed > 0)


main()
`;

/** Content of test.py. */
export function testFile(calls: readonly TestCall[]): string {
  const lines = calls.map((call) => {
    return `    ("${call.module}", "${printCall(call)}", ${repr(call.expected)}),\n`;
  });
  return `CALLS = [\n${lines.join("")}${PROGRAM}`;
}

/** What `python test.py` prints and its exit code, given what each call returned (as test.py shows it). */
export function runOutput(results: readonly { call: TestCall; got: string }[]): {
  output: string;
  exitCode: number;
} {
  const failures = results.filter(({ call, got }) => got !== repr(call.expected));
  const lines = failures.map(({ call, got }) => {
    return `FAIL ${printCall(call)}: got ${got}, expected ${repr(call.expected)}\n`;
  });
  const last = failures.length > 0 ? `${failures.length} failed\n` : "OK\n";
  return { output: lines.join("") + last, exitCode: failures.length > 0 ? 1 : 0 };
}
