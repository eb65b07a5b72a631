// What verification runs in a tiny repository. The code under test runs in a process of its own that gets calls and
// gives values: it never sees what is expected, and the lines that count bear a word that it does not know.
import { RUN, TEST_FILE } from "./runner.ts";

/**
 * The worker is forked before the nonce and the expected values are read, and it asks nothing before test.py is gone.
 * Whatever it does to itself (prints, ends, kills) is a wrong answer. `posix` is what `os` is made of, and there already;
 * neither process tears its interpreter down: both save a third of the time.
 */
const JUDGE = `import posix

${RUN}

def work(requests, answers):
    null = posix.open("/dev/null", posix.O_RDWR)
    for descriptor in (0, 1, 2):
        posix.dup2(null, descriptor)
    sys.path.insert(0, posix.getcwd())
    for line in open(requests):
        done, got = run(*line.rstrip("\\n").split("\\t"))
        posix.write(answers, f"{'+' if done else '-'}{got}\\n".encode())


def judge(requests, answers):
    nonce = sys.stdin.readline().strip()
    with open("${TEST_FILE}") as source:
        calls = source.read().split("\\n]\\n")[0] + "\\n]"
    posix.unlink("${TEST_FILE}")
    scope = {}
    exec(calls, scope)
    failed = 0
    for module, call, expected in scope["CALLS"]:
        try:
            posix.write(requests, f"{module}\\t{call}\\n".encode())
        except BrokenPipeError:
            pass
        got = answers.readline().rstrip("\\n")
        test = f"${TEST_FILE}::{call.replace(' ', '')}"
        if got == f"+{expected!r}":
            print(nonce, "PASSED", test)
        else:
            failed += 1
            print(nonce, "FAILED", test, "-", f"got {got[1:] or 'nothing'}, expected {expected!r}")
    sys.stdout.flush()
    posix._exit(failed > 0)


to_worker, to_judge = posix.pipe(), posix.pipe()
if posix.fork():
    posix.close(to_worker[0])
    posix.close(to_judge[1])
    judge(to_worker[1], open(to_judge[0], errors="replace"))
posix.close(to_worker[1])
posix.close(to_judge[0])
try:
    work(to_worker[0], to_judge[1])
finally:
    posix._exit(0)
`;

/** Isolated from the environment, no site packages, no bytecode written. The nonce comes by standard input. */
export function verifyCommand(nonce: string): string {
  return `echo '${nonce}' | python3 -I -S -B -c '${JUDGE.replaceAll("'", "'\\''")}'`;
}
