// Attempts to get out, over every kind that isolates. Each attempt that an unconfined shell of another user can make at
// all is made there too, where it must succeed: what fails in a sandbox then fails because of the sandbox.
import { type ChildProcess, spawn } from "node:child_process";
import { createSocket } from "node:dgram";
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { landlockVersion } from "../../lib/sandbox/launcher.ts";
import type { LocalKind } from "../../lib/sandbox/local.ts";
import type { Sandbox, SandboxBackend } from "../../lib/sandbox/types.ts";
import {
  APART,
  ISOLATED,
  makeRepository,
  openBackend,
  processesWith,
  removeDirectories,
  temporaryDirectory,
} from "./support.ts";

const root = process.getuid?.() === 0;
const MARK = `5${process.pid}.77`;

interface Ground {
  /** A folder that everybody may write to, with a file `secret` that everybody may read and write. */
  open: string;
  port: number;
  udpPort: number;
  /** Of an abstract socket. */
  name: string;
  /** Of a socket in the file system. */
  socket: string;
}

const python = (lines: string): string => `python - <<'PROGRAM'\n${lines}\nPROGRAM`;

const answers = (family: string, address: string): string =>
  python(`import socket
s = socket.socket(${family})
s.settimeout(5)
s.connect(${address})
print(s.recv(100).decode())`);

/** Prints ESCAPED where it gets out. */
const ATTEMPTS: Record<string, (ground: Ground) => string> = {
  "reads a file of the host": ({ open }) => `cat ${open}/secret`,
  "reads it through a symbolic link": ({ open }) => `ln -sf ${open}/secret link; cat link`,
  "reads it through another name of /": ({ open }) =>
    `cat /proc/self/root${open}/secret /proc/$$/cwd/../../..${open}/secret`,
  "lists a folder of the host": ({ open }) => `ls ${open} | grep -q secret && echo ESCAPED`,
  "writes a file of the host": ({ open }) => `echo x >>${open}/written && echo ESCAPED`,
  "makes a folder on the host": ({ open }) => `mkdir ${open}/folder && echo ESCAPED`,
  "cuts a file of the host": ({ open }) =>
    python(`import os\nos.truncate("${open}/cut", 1)\nprint("ESCAPED")`),
  "removes a file of the host": ({ open }) => `rm ${open}/victim && echo ESCAPED`,
  "moves a file of the host into its tree": ({ open }) => `mv ${open}/moved . && cat moved && echo ESCAPED`,
  "reaches a service of the host by TCP": ({ port }) => answers("socket.AF_INET", `("127.0.0.1", ${port})`),
  "reaches it by the shell's own sockets": ({ port }) => `cat </dev/tcp/127.0.0.1/${port}`,
  "reaches a service of the host by UDP": ({ udpPort }) =>
    python(`import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.sendto(b"x", ("127.0.0.1", ${udpPort}))
print(s.recv(100).decode())`),
  // Node fills such a name up with NUL.
  "reaches an abstract socket of the host": ({ name }) =>
    answers("socket.AF_UNIX", `"\\0${name}".ljust(108, "\\0")`),
  "reaches a socket in a folder of the host": ({ socket }) => answers("socket.AF_UNIX", `"${socket}"`),
  "reads the command lines of others": () =>
    `for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$f; done 2>/dev/null | grep -q '[${MARK[0]}]${MARK.slice(1)}' && echo ESCAPED`,
};

/** Calls that change nothing, as C would make them, with what they may fail with where they are refused. */
const CALLS: Record<string, string> = {
  ptrace: "call(101, 0, 0, 0, 0)",
  keyctl: "call(250, 0, -3, 0)",
  "a session keyring": "call(250, 1, 0)",
  io_uring_setup: "call(425, 1, None) ; e = 0 if e == 14 else e",
  userfaultfd: "call(323, 1)",
  memfd_create: 'call(319, b"x", 0)',
  personality: "call(135, 0x0040000)",
  "prlimit of a process by its id": "call(302, os.getpid(), 0, None, None)",
  "sched_setaffinity of a process by its id": 'call(203, os.getpid(), 8, b"\\xff" * 8)',
  "TIOCSTI, where no terminal would be another error": "call(16, 0, 0x5412, b'x') ; e = 0 if e == 25 else e",
  "TIOCSTI with bits that the kernel drops":
    "call(16, 0, (1 << 32) | 0x5412, b'x') ; e = 0 if e == 25 else e",
  "a system call newer than the list": "call(463, 0, None, None, 0) ; e = 0 if e in (9, 14, 22) else e",
  clone3: "call(435, None, 0) ; e = 0 if e == 22 else e",
};

const CALL = `import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    global e
    values = [a if a is None or isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]
    e = 0 if libc.syscall(ctypes.c_long(number), *values) >= 0 else ctypes.get_errno()
`;

describe.each(ISOLATED)("a program in a %s sandbox", (kind: LocalKind) => {
  let ground: Ground;
  let backend: SandboxBackend;
  let host: SandboxBackend;
  let sandbox: Sandbox;
  let unconfined: Sandbox;
  let repository: string;
  let servers: Server[];
  let sleeper: ChildProcess;
  const udp = createSocket("udp4");

  beforeAll(async () => {
    // Not below /tmp, which a sandbox has of its own.
    const open = mkdtempSync("/var/tmp/tokenring-test-");
    chmodSync(open, 0o777);
    for (const name of ["secret", "cut", "victim", "moved"]) {
      writeFileSync(join(open, name), "ESCAPED\n");
      chmodSync(join(open, name), 0o666);
    }
    const name = `tokenring-test-${process.pid}-${kind}`;
    const socket = join(open, "socket");
    servers = [];
    for (const address of [{ host: "127.0.0.1", port: 0 }, { path: `\0${name}` }, { path: socket }]) {
      const server = createServer((connection) => connection.on("error", () => undefined).end("ESCAPED\n"));
      await new Promise<void>((resolve) => server.listen(address, resolve));
      servers.push(server);
    }
    chmodSync(socket, 0o777);
    udp.on("message", (_, from) => udp.send("ESCAPED\n", from.port, from.address));
    await new Promise<void>((resolve) => udp.bind(0, "127.0.0.1", resolve));
    const { port } = (servers[0] as Server).address() as { port: number };
    ground = { open, port, udpPort: udp.address().port, name, socket };
    sleeper = spawn("sleep", [MARK], { stdio: "ignore" });
    repository = makeRepository({ "a.txt": "a\n" });
    [backend, host] = await Promise.all([openBackend(kind), openBackend("unsafe-host")]);
    [sandbox, unconfined] = await Promise.all([backend.open({ repository }), host.open({ repository })]);
  });

  afterAll(async () => {
    await Promise.all([backend?.dispose(), host?.dispose()]);
    for (const server of servers) server.close();
    udp.close();
    sleeper.kill("SIGKILL");
    rmSync(ground.open, { recursive: true, force: true });
    removeDirectories();
  });

  it.each(Object.keys(ATTEMPTS))("%s: not here", async (name) => {
    const attempt = ATTEMPTS[name]?.(ground) as string;
    // First the sandbox: some attempts can be made once.
    expect((await sandbox.exec(attempt)).output).not.toContain("ESCAPED");
    expect((await unconfined.exec(attempt)).output).toContain("ESCAPED");
    await Promise.all([sandbox, unconfined].map((one) => one.exec("rm -rf link moved")));
  });

  it("leaves the host's files as they were", () => {
    // What the unconfined ones did is all that was done: once each.
    expect(readFileSync(join(ground.open, "written"), "utf8")).toBe("x\n");
  });

  it.runIf(process.arch === "x64").each(Object.keys(CALLS))("may not call %s", async (name) => {
    const call = python(`${CALL}${CALLS[name]}\nprint("ESCAPED" if e == 0 else e)`);
    expect((await unconfined.exec(call)).output).toBe("ESCAPED\n");
    expect((await sandbox.exec(call)).output).toMatch(/^(1|38)\n$/);
  });

  it("may make no namespaces, mounts or rights", async () => {
    const calls = ["unshare -U true", "unshare -r true", "mount -t tmpfs x .", "chroot / true", "su -c true"];
    for (const call of calls) {
      expect((await sandbox.exec(`${call} </dev/null 2>/dev/null && echo ESCAPED`)).output, call).toBe("");
    }
    if (
      existsSync("/proc/sys/user/max_user_namespaces") &&
      !existsSync("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    ) {
      expect((await unconfined.exec("unshare -U true && echo ESCAPED")).output).toBe("ESCAPED\n");
    }
    const state = python(`import re
for line in open("/proc/self/status"):
    if re.match("Cap(Inh|Prm|Eff|Amb)|NoNewPrivs|Seccomp:", line): print(line.split()[1].lstrip("0") or 0)`);
    if (APART.includes(kind)) expect((await sandbox.exec(state)).output).toBe("0\n0\n0\n0\n1\n2\n");
  });

  it.runIf(process.arch === "x64")("may not call the kernel as a program of 32 bits", async () => {
    const program = python(`import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")
pid = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
print("ESCAPED" if pid > 0 else pid)`);
    expect((await sandbox.exec(program)).output).not.toContain("ESCAPED");
  });

  it("has no System V shared memory, which outlives all processes", async () => {
    const program = python(`${CALL}call(29, 0, 4096, 0o600)\nprint("ESCAPED" if e == 0 else e)`);
    if (process.arch === "x64") expect((await sandbox.exec(program)).output).toBe("1\n");
  });

  it("signals nobody outside", async () => {
    const mark = `2${process.pid}.${kind.length}`;
    const other = await backend.open({ repository });
    await other.exec(`sleep ${mark} & echo`);
    await expect.poll(() => processesWith(`sleep\0${mark}`).length, { timeout: 10_000 }).toBe(1);
    // Our own two by name, never all: were this sandbox broken and the host root, nothing on the machine would be left.
    const victims = [sleeper.pid as number, ...processesWith(`sleep\0${mark}`)];
    for (const pid of victims) await sandbox.exec(`kill -KILL ${pid}`);
    expect((await other.exec("kill -0 $! && echo alive")).output).toBe("alive\n");
    expect(sleeper.exitCode ?? sleeper.signalCode).toBeNull();
    await other.close();
  });

  it("reads nothing of a sandbox beside it", async () => {
    const other = await backend.open({ repository });
    const place = (await other.exec("echo ESCAPED >own; chmod 777 . own; pwd | tr / _")).output.trim();
    const path = place.replaceAll("_", "/");
    expect((await sandbox.exec(`cat ${path.replace(/^\/repo$/, "/repo/..")}/own`)).output).not.toContain(
      "ESCAPED",
    );
    await other.close();
  });

  it("does not outlive its sandbox, however it hides", async () => {
    const mark = `4${process.pid}.${kind.length}`;
    const other = await backend.open({ repository });
    await other.exec(
      python(`import os
for i in range(5):
    if os.fork() == 0:
        os.setsid()
        if os.fork() > 0: os._exit(0)
        os.closerange(0, 3)
        os.chdir("/")
        os.execvp("sleep", ["sleep", "${mark}"])`),
    );
    await other.exec(
      `(trap '' TERM HUP INT; setsid nohup sleep ${mark} >/dev/null 2>&1 &); kill -9 $PPID; kill -9 $$`,
    );
    await other.exec(`setsid sleep ${mark} >/dev/null 2>&1 & disown`);
    if (kind === "landlock") {
      await expect.poll(() => processesWith(`sleep\0${mark}`).length, { timeout: 10_000 }).toBeGreaterThan(0);
    }
    await other.close();
    expect(processesWith(`sleep\0${mark}`)).toEqual([]);
  });

  it("is gone at once when its sandbox is closed, every time", async () => {
    // A race: once, one closing in two hundred left something for some milliseconds.
    for (let i = 0; i < 100; ++i) {
      const mark = `6${process.pid}.${kind.length}.${i}`;
      const other = await backend.open({ repository });
      await other.exec(`for i in 1 2 3; do setsid sleep ${mark} >/dev/null 2>&1 & done; disown -a`);
      await other.close();
      expect(processesWith(`sleep\0${mark}`)).toEqual([]);
    }
  });

  it("outlives no kill in the middle of a storm of forks", async () => {
    const mark = `3${process.pid}.${kind.length}`;
    const other = await backend.open({ repository });
    const storm = python(`import os
while True:
    try: os.fork()
    except OSError: os.execvp("sleep", ["sleep", "${mark}"])`);
    expect(await other.exec(storm, { timeoutMs: 700 })).toMatchObject({ timedOut: true });
    expect(processesWith(`sleep\0${mark}`)).toEqual([]);
    expect((await other.exec("echo alive")).output).toBe("alive\n");
    await other.close();
  });

  it("may open a thousand files and no more", async () => {
    const program = python(`files = []
try:
    while len(files) < 5000: files.append(open("/dev/null"))
except OSError as error: print(len(files) < 1024, error.errno)`);
    expect((await sandbox.exec(program)).output).toBe("True 24\n");
  });

  it("writes nothing to the terminal that the host runs on", async () => {
    const directory = temporaryDirectory();
    // A terminal of its own, that controls the process which opens the sandbox.
    const program = join(import.meta.dirname, "terminal.ts");
    const line = [process.execPath, "--import", "tsx", program, kind, directory, repository];
    const script = `import os, pty, sys
pid, terminal = pty.fork()
if pid == 0: os.execv(sys.argv[1], sys.argv[1:])
text = b""
try:
    while True:
        part = os.read(terminal, 65536)
        if not part: break
        text += part
except OSError: pass
os.waitpid(pid, 0)
sys.stdout.buffer.write(text)`;
    const child = spawn("python3", ["-c", script, ...line], { timeout: 50_000, killSignal: "SIGKILL" });
    let seen = "";
    child.stdout.on("data", (data) => {
      seen += data;
    });
    await new Promise((resolve) => child.once("close", resolve));
    // The host's own words arrive, so the terminal is really there.
    expect(seen).toContain("host speaks");
    expect(seen).toContain("host is done");
    expect(seen).not.toContain("ESCAPED");
  });

  it.runIf(kind === "landlock" && root)(
    "is another user than the host and than other sandboxes",
    async () => {
      const other = await backend.open({ repository });
      const ids = await Promise.all([sandbox, other].map(async (one) => (await one.exec("id -u")).output));
      expect(new Set([...ids, "0\n"]).size).toBe(3);
      await other.close();
    },
  );

  it.runIf(kind === "landlock" && landlockVersion() >= 6)(
    "may use pairs of streams, no other sockets",
    async () => {
      const program = python(`import socket
a, b = socket.socketpair()
a.send(b"pair"); print(b.recv(10).decode())
for make in (lambda: socket.socketpair(type=socket.SOCK_DGRAM), socket.socket, lambda: socket.socket(socket.AF_UNIX)):
    try: make(); print("ESCAPED")
    except OSError as error: print(error.errno)`);
      expect((await sandbox.exec(program)).output).toBe("pair\n13\n13\n13\n");
    },
  );
});
