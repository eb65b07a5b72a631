// How the repositories of SWE-bench Verified run their tests, since its rows do not say.
import {
  type LogParser,
  parseLogDjango,
  parseLogMatplotlib,
  parseLogPytest,
  parseLogPytestOptions,
  parseLogPytestV2,
  parseLogSeaborn,
  parseLogSympy,
} from "./log-parsers.ts";

interface Repository {
  testCommand: string;
  parser: LogParser;
  /** What the runner calls a test file, where that is not its path. */
  target?: (file: string) => string;
}

const PYTEST = "pytest -rA";

export const VERIFIED_REPOSITORIES: Readonly<Record<string, Repository>> = {
  "astropy/astropy": { testCommand: PYTEST, parser: parseLogPytestV2 },
  "django/django": {
    testCommand: "./tests/runtests.py --verbosity 2 --settings=test_sqlite --parallel 1",
    parser: parseLogDjango,
    target: (file) =>
      file
        .replace(/^tests\//, "")
        .replace(/\.py$/, "")
        .replaceAll("/", "."),
  },
  "matplotlib/matplotlib": { testCommand: PYTEST, parser: parseLogMatplotlib },
  "mwaskom/seaborn": { testCommand: "pytest --no-header -rA", parser: parseLogSeaborn },
  "pallets/flask": { testCommand: PYTEST, parser: parseLogPytest },
  "psf/requests": { testCommand: PYTEST, parser: parseLogPytestOptions },
  "pydata/xarray": { testCommand: PYTEST, parser: parseLogPytest },
  "pylint-dev/pylint": { testCommand: PYTEST, parser: parseLogPytestOptions },
  "pytest-dev/pytest": { testCommand: PYTEST, parser: parseLogPytest },
  "scikit-learn/scikit-learn": { testCommand: PYTEST, parser: parseLogPytestV2 },
  "sphinx-doc/sphinx": { testCommand: "tox --current-env -epy39 -v --", parser: parseLogPytestV2 },
  "sympy/sympy": {
    testCommand: "PYTHONWARNINGS='ignore::UserWarning,ignore::SyntaxWarning' bin/test -C --verbose",
    parser: parseLogSympy,
  },
};
