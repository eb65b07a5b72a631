// The benchmarks for programs: run suites, read what a run left, compare two runs, export one.
export {
  type Change,
  type CompareOptions,
  compareResults,
  type RunComparison,
  type Verdict,
} from "./compare.ts";
export { ACTION_TOOLS, type ActionEntry, type ActionTool, exportForAction, markdownTable } from "./export.ts";
export { describeMachine, MOST_THREADS } from "./machine.ts";
export { type Case, type Comparison, type MeasureOptions, measure, type Peer } from "./measure.ts";
export {
  biggerIsBetter,
  parseResults,
  type Result,
  type Results,
  readResults,
  resultSchema,
  resultsSchema,
} from "./result.ts";
export { type RunOptions, runSuites, SUITES, type Suite } from "./suites.ts";
