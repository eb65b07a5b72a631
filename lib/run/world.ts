// What a job needs besides its policy: tasks, sandboxes and the judge of patches.
import { localBackend } from "../sandbox/local.ts";
import type { SandboxBackend } from "../sandbox/types.ts";
import { tinyswe } from "../tasks/tinyswe/tinyswe.ts";
import type { Instance, TaskSet } from "../tasks/types.ts";
import type { Verification } from "../verify/types.ts";
import { verify } from "../verify/verify.ts";
import type { JobConfig } from "./config.ts";
import type { ProgressSink } from "./progress.ts";

export interface World extends AsyncDisposable {
  readonly tasks: TaskSet;
  readonly sandboxes: SandboxBackend;
  /** Judges a patch in a fresh sandbox. */
  verify(instance: Instance, patch: string, options?: { signal?: AbortSignal }): Promise<Verification>;
}

/** Opens the tasks and sandboxes of a config; nothing is left open when that fails. */
export async function openWorld(config: JobConfig, options: { progress: ProgressSink }): Promise<World> {
  const { train, heldOut, heldOutFamilies } = config.tasks;
  const tasks = tinyswe({ seed: config.seed, train, heldOut, heldOutFamilies });
  try {
    const sandboxes = await localBackend({
      ...(config.sandbox.kind === "auto" ? {} : { kind: config.sandbox.kind }),
      programs: tasks.programs,
      onWarning: (message: string) => options.progress.log(message),
    });
    return {
      tasks,
      sandboxes,
      verify: (instance, patch, { signal } = {}) =>
        verify({
          instance,
          tasks,
          patch,
          backend: sandboxes,
          timeoutMs: config.tasks.testSeconds * 1000,
          ...(signal ? { signal } : {}),
        }),
      async [Symbol.asyncDispose]() {
        await sandboxes.dispose();
        await tasks.dispose();
      },
    };
  } catch (error) {
    await tasks.dispose();
    throw error;
  }
}
