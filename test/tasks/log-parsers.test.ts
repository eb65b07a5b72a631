import { describe, expect, it } from "vitest";
import { LOG_PARSERS, logParser } from "../../lib/tasks/log-parsers.ts";

const SUMMARY = `============================= test session starts ==============================
collected 7 items

tests/test_a.py .FsxE                                                    [100%]
=========================== short test summary info ============================
PASSED tests/test_a.py::test_ok
PASSED tests/test_a.py::test_path[/usr/lib/x.so]
PASSED tests/test_a.py::test_words[one two]
SKIPPED [1] tests/test_a.py:9: not here
XFAIL tests/test_a.py::test_expected - reason
FAILED tests/test_a.py::test_bad - assert 1 - 2 == 3
FAILED tests/test_a.py::test_bare
ERROR tests/test_a.py::test_setup - fixture
ERRORS and more
  PASSED tests/test_a.py::test_indented
PASSED
========================= 1 failed, 3 passed in 0.12s ==========================
`;

const COMMON = {
  "tests/test_a.py::test_ok": "PASSED",
  "tests/test_a.py::test_words[one": "PASSED",
  "[1]": "SKIPPED",
  "tests/test_a.py::test_expected": "XFAIL",
  "tests/test_a.py::test_bad": "FAILED",
  "tests/test_a.py::test_bare": "FAILED",
  "tests/test_a.py::test_setup": "ERROR",
};

describe("log parsers", () => {
  it("parse_log_pytest reads status and id, cut at the first space", () => {
    expect(logParser("parse_log_pytest")(SUMMARY)).toEqual({
      ...COMMON,
      "tests/test_a.py::test_path[/usr/lib/x.so]": "PASSED",
    });
  });

  it("takes the last line on an id, whatever the id", () => {
    const parse = logParser("parse_log_pytest");
    expect(parse("PASSED a\nFAILED a - late\r\nPASSED\tb\x1cc")).toEqual({ a: "FAILED", b: "PASSED" });
    expect(Object.entries(parse("PASSED __proto__\nPASSED constructor"))).toEqual([
      ["__proto__", "PASSED"],
      ["constructor", "PASSED"],
    ]);
    expect(parse("")).toEqual({});
  });

  it("parse_log_pytest_options keeps the last part of a path in the parameters", () => {
    const parse = logParser("parse_log_pytest_options");
    expect(parse(SUMMARY)).toEqual({ ...COMMON, "tests/test_a.py::test_path[/x.so]": "PASSED" });
    expect(
      parse(
        "PASSED t[//host/a/b]\nPASSED t[/a/*]\nPASSED t[a/b]\nPASSED u[/a/b]tail\nPASSED v[x[/a/b]]\nPASSED w[]",
      ),
    ).toEqual({
      "t[//host/a/b]": "PASSED",
      "t[/a/*]": "PASSED",
      "t[a/b]": "PASSED",
      "u[/b]": "PASSED",
      "v[x[/a/b]]": "PASSED",
      "w[]": "PASSED",
    });
  });

  it("parse_log_pytest_v2 reads through colours and also statuses that come last", () => {
    const parse = logParser("parse_log_pytest_v2");
    expect(parse(SUMMARY)).toEqual({ ...COMMON, "tests/test_a.py::test_path[/usr/lib/x.so]": "PASSED" });
    expect(
      parse(
        "\x1b[32mPASSED\x1b[0m a.py::t1\na.py::t2 \x1b[31mFAILED\x1b[0m\na.py::t3 PASSED\na.py::t4 PASSED [ 50%]\nalone PASSEDx",
      ),
    ).toEqual({ "a.py::t1": "PASSED", "a.py::t2": "FAILED", "a.py::t3": "PASSED" });
    // The second word is the status, as it always was: this line has none there.
    expect(parse("a.py::t two PASSED")).toEqual({});
  });

  it("names the parsers there are when asked for another", () => {
    for (const name of Object.keys(LOG_PARSERS)) expect(logParser(name)).toBe(LOG_PARSERS[name]);
    for (const name of ["parse_log_django", "toString"]) {
      expect(() => logParser(name)).toThrow(
        /parse_log_pytest, parse_log_pytest_options, parse_log_pytest_v2/,
      );
    }
  });
});
