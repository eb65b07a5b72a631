// CPU time that is ours alone, whatever else the machine does: of this process and of all that came of it.
import { readdirSync, readFileSync } from "node:fs";

/** A clock tick of /proc/PID/stat: USER_HZ, 100 a second on all that Node runs on. */
const TICK_MS = 10;

interface Times {
  parent: number;
  /** Milliseconds of its own, and of the children that it has waited for and theirs (proc_pid_stat(5)). */
  own: number;
  waited: number;
}

function times(pid: number | string): Times | null {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/stat`, "latin1");
  } catch {
    return null; // It has gone.
  }
  // The name in parentheses may hold anything.
  const fields = text
    .slice(text.lastIndexOf(")") + 2)
    .split(" ")
    .map(Number);
  const sum = (first: number): number => TICK_MS * ((fields[first] ?? 0) + (fields[first + 1] ?? 0));
  return { parent: fields[1] ?? 0, own: sum(11), waited: sum(13) };
}

/** Or of all processes, where the kernel keeps no list: to look at each would be most of what is measured. */
function children(): string[] {
  try {
    const threads = readdirSync("/proc/self/task");
    return threads.flatMap(
      (id) => readFileSync(`/proc/self/task/${id}/children`, "latin1").match(/\d+/g) ?? [],
    );
  } catch {
    return readdirSync("/proc").filter((name) => /^\d+$/.test(name));
  }
}

/**
 * Milliseconds of user and system time so far of this process (all threads), of its children, and of what these have
 * waited for. What still runs below a child is counted when it has ended; the kernel's own threads are not.
 */
export function cpuMilliseconds(): number {
  const { user, system } = process.cpuUsage();
  let sum = (user + system) / 1000 + (times("self")?.waited ?? 0);
  for (const pid of children()) {
    const child = times(pid);
    if (child?.parent === process.pid) sum += child.own + child.waited;
  }
  return sum;
}
