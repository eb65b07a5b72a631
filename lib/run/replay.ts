// Stored trajectories as a source of rollouts: what a run sampled, learnt from by another.
import path from "node:path";
import type { Group, RolloutSource, Trajectory } from "../agent/types.ts";
import type { Tokenizer } from "../engine/tokenizer-types.ts";
import { TokenringError } from "../errors.ts";
import { counts } from "../evaluate/episodes.ts";
import { checkAborted } from "../learn/abort.ts";
import type { Instance, TaskSet } from "../tasks/types.ts";
import type { JobConfig } from "./config.ts";
import { parseConfig } from "./config-file.ts";
import { readManifest } from "./directory.ts";
import { readIndex, type TrajectoryEntry, TrajectoryReader } from "./trajectories.ts";

/** The rollouts of one instance that were sampled together, as the index has them. */
interface StoredGroup {
  key: string;
  instance: Instance;
  stage: string;
  /** Those that count. */
  entries: TrajectoryEntry[];
  /** Rollouts that were sampled, broken ones too. */
  sampled: number;
}

/** Which stored trajectories, and who is to learn from them. */
export interface ReplayOptions {
  /** The run directory that holds the trajectories. */
  path: string;
  /** Its stages to take; all but evaluations where left out. */
  stages?: readonly string[] | undefined;
  /** The policy's, which must be that of the trajectories. */
  tokenizer: Tokenizer;
  /** The tasks of the job that learns; what it is measured on is not learnt from. */
  tasks: Pick<TaskSet, "train" | "heldOut" | "apart">;
}

/**
 * A source that samples nothing: each of its `instances` stands for one stored group, and `collect` reads it. The same
 * instance may stand there several times, once a group.
 */
export class Replay implements RolloutSource {
  /** The run directory, absolute. */
  readonly path: string;
  readonly #options: ReplayOptions;
  readonly #groups: ReadonlyMap<Instance, StoredGroup>;
  readonly #temperatures: ReadonlyMap<string, number>;
  readonly #reader: TrajectoryReader;

  private constructor(
    options: ReplayOptions,
    groups: StoredGroup[],
    temperatures: ReadonlyMap<string, number>,
  ) {
    this.path = path.resolve(options.path);
    this.#options = options;
    this.#groups = new Map(groups.map((group) => [group.instance, group]));
    this.#temperatures = temperatures;
    this.#reader = new TrajectoryReader(this.path);
  }

  /**
   * Reads the index of the run, not its tokens.
   * @throws ERR_TOKENRING_RUN_DIRECTORY when there is no run, or none of its trajectories is for training;
   * ERR_TOKENRING_TASK when one is of a task that is held out here; ERR_TOKENRING_TOKENIZER when a first one reads
   * otherwise with this tokenizer than when it was sampled.
   */
  static async open(options: ReplayOptions): Promise<Replay> {
    const at = path.resolve(options.path);
    const config = parseConfig(JSON.stringify((await readManifest(at)).config), path.join(at, "run.json"));
    if (config.replay)
      throw fault(
        `${at}: itself learnt from stored trajectories, of ${config.replay.path}; learn from those`,
      );
    const groups = await groupsOf(at, options);
    const temperatures = new Map<string, number>();
    for (const stage of new Set(groups.map((group) => group.stage)))
      temperatures.set(stage, temperatureOf(config, stage, at));
    const replay = new Replay(options, groups, temperatures);
    for (const stage of temperatures.keys()) {
      const first = groups.find((group) => group.stage === stage)?.entries[0];
      if (first) await replay.#read(first);
    }
    return replay;
  }

  /** One for each stored group, in their order. */
  get instances(): Instance[] {
    return [...this.#groups.keys()];
  }

  /** Trajectories of all groups, broken ones left out. */
  get episodes(): number {
    return [...this.#groups.values()].reduce((sum, { entries }) => sum + entries.length, 0);
  }

  /** What tells the groups of `instances` apart, to find them again by `byKey`. */
  keys(instances: readonly Instance[]): string[] {
    return instances.map((instance) => this.#groupOf(instance).key);
  }

  /** The instances whose groups have these keys. Throws ERR_TOKENRING_RUN_DIRECTORY when one is gone. */
  byKey(keys: readonly string[]): Instance[] {
    const known = new Map([...this.#groups.values()].map(({ key, instance }) => [key, instance]));
    return keys.map((key) => {
      const instance = known.get(key);
      if (instance) return instance;
      throw new TokenringError(
        "ERR_TOKENRING_RUN_DIRECTORY",
        `${this.path}: the group ${key} that this run had begun to learn from is gone; restore it or start a new run`,
      );
    });
  }

  /** Throws ERR_TOKENRING_CONFIG when a stage of DAPO says something else of its groups than they are. */
  check(stage: { rollouts: number; temperature: number }, key: string): void {
    const refuse = (name: string, given: number, stored: number): never => {
      throw new TokenringError(
        "ERR_TOKENRING_CONFIG",
        `${key}.${name} is ${given}, and groups of ${this.path} were sampled with ${stored}; set it to that, ` +
          "or take other stages (replay.stages)",
      );
    };
    for (const group of this.#groups.values()) {
      const temperature = this.#temperatures.get(group.stage) as number;
      if (temperature !== stage.temperature) refuse("temperature", stage.temperature, temperature);
    }
    const largest = [...this.#groups.values()].reduce((most, { sampled }) => Math.max(most, sampled), 0);
    if (largest !== stage.rollouts) refuse("rollouts", stage.rollouts, largest);
  }

  /**
   * Reads the groups that the instances stand for, in their order; `rollouts`, `iteration` and `temperature` of the request
   * change nothing.
   * @throws ERR_TOKENRING_RUN_DIRECTORY for a damaged shard, ERR_TOKENRING_TOKENIZER, ERR_TOKENRING_ABORTED;
   * ERR_TOKENRING_INVALID_ARGUMENT for what only episodes that are run can give.
   */
  async collect(request: Parameters<RolloutSource["collect"]>[0]): Promise<Group[]> {
    if (request.prefixes || request.spare || request.alsoAt?.length) {
      throw new TokenringError(
        "ERR_TOKENRING_INVALID_ARGUMENT",
        `${request.purpose}: stored trajectories cannot be gone on with, spared or cut; leave prefixes, spare and alsoAt out`,
      );
    }
    const groups: Group[] = [];
    for (const instance of request.instances) {
      const trajectories: Trajectory[] = [];
      for (const entry of this.#groupOf(instance).entries) {
        checkAborted(request.signal, `${request.purpose}, stored trajectories`);
        const trajectory = await this.#read(entry);
        trajectories.push(trajectory);
        request.onTrajectory?.(trajectory);
      }
      groups.push({ instance, trajectories, dropped: [] });
    }
    return groups;
  }

  #groupOf(instance: Instance): StoredGroup {
    const group = this.#groups.get(instance);
    if (group) return group;
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `${instance.instance_id} stands for no stored group; take instances from Replay.instances`,
    );
  }

  /** A trajectory, after a look whether its tokens say with this tokenizer what they said when they were sampled. */
  async #read(entry: TrajectoryEntry): Promise<Trajectory> {
    const { trajectory } = await this.#reader.read(entry);
    const { tokenizer } = this.#options;
    const { id, tokens, logprobs, turns } = trajectory;
    const where = `${this.path}: trajectory ${id}`;
    for (const [i, { start, end, text }] of turns.entries()) {
      const said = tokenizer.decode(tokens.subarray(start, end));
      if (said !== text) {
        throw new TokenringError(
          "ERR_TOKENRING_TOKENIZER",
          `${where}, turn ${i}: its tokens read ${JSON.stringify(said.slice(0, 40))} with the model's tokenizer and ` +
            `were ${JSON.stringify(text.slice(0, 40))}; learn with the model family that sampled it`,
        );
      }
      const bad = logprobs.subarray(start, end).findIndex((value) => !(value <= 0));
      if (bad >= 0) {
        throw new TokenringError(
          "ERR_TOKENRING_RUN_DIRECTORY",
          `${where}, token ${start + bad}: its logprob is ${logprobs[start + bad]}, which nothing was sampled with; ` +
            "the shard is damaged, restore it",
        );
      }
    }
    return trajectory;
  }
}

const EVALUATION = /-evaluation$/;

async function groupsOf(at: string, { stages, tasks }: ReplayOptions): Promise<StoredGroup[]> {
  const evaluation = stages?.find((stage) => EVALUATION.test(stage));
  if (evaluation !== undefined)
    throw fault(
      `${at}: ${evaluation} holds held-out tasks, which are to measure by; name stages of training`,
    );
  const train = new Map(tasks.train.map((instance) => [instance.instance_id, instance]));
  const heldOut = new Set(
    [...tasks.heldOut, ...Object.values(tasks.apart ?? {}).flat()].map(({ instance_id }) => instance_id),
  );
  const there = new Set<string>();
  const groups = new Map<string, StoredGroup>();
  for await (const entry of readIndex(at)) {
    const { stage, iteration, id, instanceId } = entry;
    there.add(stage);
    if (EVALUATION.test(stage) || (stages && !stages.includes(stage))) continue;
    if (heldOut.has(instanceId)) {
      throw new TokenringError(
        "ERR_TOKENRING_TASK",
        `${at}: ${id} is of ${instanceId}, which this job is measured on; learning from it would make that worthless: ` +
          "sample the training split, or give the job the tasks of that run",
      );
    }
    // All rollouts of a group have its id but for their number.
    const key = `${stage}/${iteration}/${id.slice(0, id.lastIndexOf("/"))}`;
    const group = groups.get(key) ?? {
      key,
      // An object of its own, since each stands for one group.
      instance: { ...(train.get(instanceId) ?? unknownTask(instanceId)) },
      stage,
      entries: [],
      sampled: 0,
    };
    group.sampled++;
    if (!entry.dropped && counts(entry)) group.entries.push(entry);
    groups.set(key, group);
  }
  const named = stages?.filter((stage) => !there.has(stage)) ?? [];
  if (named.length > 0)
    throw fault(
      `${at}: has no trajectories of ${named.join(", ")}; it has ${[...there].sort().join(", ") || "none"}`,
    );
  const usable = [...groups.values()].filter(({ entries }) => entries.length > 0);
  if (usable.length === 0)
    throw fault(
      `${at}: holds no trajectories to learn from; sample some (tokenring rollout), or let the run go on`,
    );
  return usable;
}

/** Of a trajectory whose task this job does not know, nothing but the name is needed to learn from it. */
function unknownTask(instance_id: string): Instance {
  const empty = {
    repo: "",
    base_commit: "",
    problem_statement: "",
    hints_text: "",
    created_at: "",
    version: "",
  };
  return { instance_id, ...empty, patch: "", test_patch: "", FAIL_TO_PASS: [], PASS_TO_PASS: [] };
}

/** At which temperature the config of a run samples the trajectories of `stage`. */
function temperatureOf(config: JobConfig, stage: string, at: string): number {
  const temperature =
    stage === "rft"
      ? 1
      : stage === "rollout"
        ? config.rollout?.temperature
        : config.stages.find(({ name }) => name === stage)?.temperature;
  if (temperature === undefined)
    throw fault(
      `${at}: its config does not say at which temperature ${stage} was sampled; name other stages`,
    );
  if (temperature === 0)
    throw fault(
      `${at}: ${stage} was sampled greedily, so its logprobs are no probabilities of what was drawn; sample anew`,
    );
  return temperature;
}

function fault(message: string): TokenringError {
  return new TokenringError("ERR_TOKENRING_RUN_DIRECTORY", message);
}
