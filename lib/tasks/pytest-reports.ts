// Results of pytest that the code under test cannot print: a plugin, loaded before any code of the repository, takes
// pytest's own reports and writes them when the session has come to its end, behind a word that only it was told.

const FOLDER = "/tmp/tokenring-reports";

/** For pytest 3 and later on any Python 3. What fails while tests are collected is an error of its file. */
const PLUGIN = `import os

_out = os.dup(1)
_word = os.read(0, 64).decode().strip()
_found = {}


def pytest_runtest_logreport(report):
    expected_to_fail = hasattr(report, "wasxfail")
    if report.outcome == "failed":
        _found[report.nodeid] = "FAILED" if report.when == "call" else "ERROR"
    elif report.outcome == "skipped":
        _found[report.nodeid] = "XFAIL" if expected_to_fail else "SKIPPED"
    elif report.when == "call" and not expected_to_fail:
        _found[report.nodeid] = "PASSED"


def pytest_collectreport(report):
    if report.outcome == "failed":
        _found[report.nodeid] = "ERROR"


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        lines = "".join("%s %s %s\\n" % (_word, status, name) for name, status in _found.items())
        os.write(_out, ("\\n" + lines).encode("utf-8", "replace"))
`;

/** The command with the plugin, or null where it does not call pytest itself (tox hides its environment). */
export function provenPytest(command: string, nonce: string): string | null {
  if (/(?:^|[\s/;&])tox\b/.test(command) || !/(?:^|[\s/;&])(?:pytest|py\.test)(?:\s|$)/.test(command))
    return null;
  return [
    `mkdir -p ${FOLDER} && cat > ${FOLDER}/tokenring_reports.py << 'END_OF_PLUGIN'`,
    `${PLUGIN}END_OF_PLUGIN`,
    `echo ${nonce} | (`,
    `export PYTHONPATH="${FOLDER}\${PYTHONPATH:+:$PYTHONPATH}" PYTEST_ADDOPTS="$PYTEST_ADDOPTS -p tokenring_reports"`,
    command,
    ")",
  ].join("\n");
}
