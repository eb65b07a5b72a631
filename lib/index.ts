// The package's front door: train, evaluate, and the parts that a script replaces with its own.

export { type EpisodeRequest, runEpisode } from "./agent/episode.ts";
export { type RolloutOptions, Rollouts } from "./agent/rollouts.ts";
export { sweTemplate } from "./agent/templates.ts";
export { type Tool, type ToolContext, ToolError, type ToolResult } from "./agent/tool.ts";
export { defaultTools } from "./agent/tools.ts";
export * from "./agent/types.ts";
export { VerdictCache } from "./agent/verdicts.ts";
export type { WorkspaceOptions } from "./agent/workspace.ts";
export { chatFormat, chatTemplateOf, loadChatTemplate } from "./engine/chat.ts";
export { embeddedEngine } from "./engine/embedded.ts";
export { scriptedEngine } from "./engine/scripted.ts";
export { loadTokenizer, tokenizerFromJson } from "./engine/tokenizer.ts";
export { buildByteTokenizer } from "./engine/tokenizer-build.ts";
export type { ChatFormat, Tokenizer } from "./engine/tokenizer-types.ts";
export type { Engine, SampledTurn, SampleOptions, Session } from "./engine/types.ts";
export { type VllmEngine, type VllmOptions, vllmEngine } from "./engine/vllm.ts";
export { type ErrorCode, isTokenringError, TokenringError } from "./errors.ts";
export {
  type AbstentionPoint,
  CONFIDENCE_SCORES,
  type ConfidenceReport,
  type ConfidenceScore,
  confidenceOf,
  confidenceReport,
} from "./evaluate/confidence.ts";
export { type Evaluation, evaluate } from "./evaluate/evaluate.ts";
export { mean, passAtK, sem } from "./evaluate/statistics.ts";
export type { CreditSummary, ShapingOptions, StepCreditOptions } from "./learn/credit.ts";
export { refinePool, SolveRates } from "./learn/curriculum.ts";
export {
  DAPO_STAGE1,
  DAPO_STAGE2,
  type DapoConfig,
  type DapoIteration,
  type DapoOptions,
  dapo,
} from "./learn/dapo.ts";
export type { ScoredGroup } from "./learn/filter.ts";
export type { ObjectiveOptions } from "./learn/objective.ts";
export { finalReward } from "./learn/reward.ts";
export { RFT_DEFAULTS, type RftConfig, type RftEvent, rft } from "./learn/rft.ts";
export type { RolloutSummary } from "./learn/rollout-summary.ts";
export { sft } from "./learn/sft.ts";
export type { LogprobMismatch, StepMetrics } from "./learn/types.ts";
export { demonstrationDocument } from "./learn/weights.ts";
export { findModel, type ModelSourceOptions } from "./policy/model-source.ts";
export {
  type HeldMemory,
  type MemoryOptions,
  type MemoryUse,
  Policy,
  type PolicyMemory,
} from "./policy/policy.ts";
export type {
  AdamWOptions,
  DecoderConfig,
  LossResult,
  Objective,
  PackedBatch,
  PassOptions,
  PolicyLoss,
} from "./policy/types.ts";
export { Random } from "./random.ts";
export { RankGroup, type RankGroupOptions } from "./ranks/group.ts";
export type { MeshOptions } from "./ranks/mesh-rank.ts";
export { launchedRank, launchedRanks, type Place } from "./ranks/place.ts";
export { runWorker, type WorkerOptions } from "./ranks/worker.ts";
export type { ArcStage } from "./report/arc.ts";
export type { ReportOptions } from "./report/blocks.ts";
export type { RunData } from "./report/data.ts";
export { writeReport } from "./report/report.ts";
export { type Agent, type FoundAgent, findAgent, openAgent } from "./run/agent.ts";
export { findCheckpoint } from "./run/checkpoints.ts";
export { type JobConfig, jobSchema, type StageConfig } from "./run/config.ts";
export { parseConfig, readConfig } from "./run/config-file.ts";
export { RunDirectory, readManifest } from "./run/directory.ts";
export { type JobOptions, type JobResult, runJob } from "./run/job.ts";
export { type JobContext, openJob } from "./run/job-context.ts";
export { type OwnRepository, ownRepository } from "./run/own-repository.ts";
export type { ProgressSink } from "./run/progress.ts";
export { readRun } from "./run/read.ts";
export { Replay, type ReplayOptions } from "./run/replay.ts";
export { type Attempt, type Solution, type SolveOptions, solve } from "./run/solve.ts";
export { dapoConfig } from "./run/stage.ts";
export { localBackend } from "./sandbox/local.ts";
export type { ExecResult, Sandbox, SandboxBackend, SandboxSpec } from "./sandbox/types.ts";
export { pristineRepository } from "./tasks/pristine.ts";
export { parseRow, type Row, readRows, rowTasks } from "./tasks/rows.ts";
export { tinyswe } from "./tasks/tinyswe/tinyswe.ts";
export type { Instance, PromptTemplate, TaskSet } from "./tasks/types.ts";
export type { Verdict, Verification } from "./verify/types.ts";
export { verify } from "./verify/verify.ts";
