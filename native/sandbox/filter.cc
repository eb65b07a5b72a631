#include "sandbox/filter.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace tokenring::sandbox {
namespace {

#if defined(__x86_64__)
constexpr unsigned kArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr unsigned kArchitecture = AUDIT_ARCH_AARCH64;
#else
#error "The sandbox's system call filter knows x86-64 and arm64."
#endif

// Numbers since Linux 5.0 are the same everywhere; older headers lack the later names.
constexpr unsigned kMoveMount = 429, kOpenTree = 428, kFsopen = 430, kFsconfig = 431, kFsmount = 432, kFspick = 433;
constexpr unsigned kIoUringSetup = 425, kIoUringEnter = 426, kIoUringRegister = 427, kClone3 = 435, kPidfdGetfd = 438;
constexpr unsigned kProcessMadvise = 440, kMountSetattr = 442, kQuotactlFd = 443, kMemfdSecret = 447;
constexpr unsigned kFchmodat2 = 452, kStatmount = 457, kListmount = 458, kLastKnown = 462;
constexpr unsigned kX32Bit = 0x40000000;
constexpr unsigned kTiocsti = 0x5412, kTioclinux = 0x541c;

constexpr unsigned kNamespaceFlags =
    CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;

constexpr unsigned kAllow = SECCOMP_RET_ALLOW;
constexpr unsigned fail(int error) { return SECCOMP_RET_ERRNO | static_cast<unsigned>(error); }

class Program {
 public:
  std::vector<sock_filter> code;

  void load(unsigned offset) { statement(BPF_LD | BPF_W | BPF_ABS, offset); }
  void load_number() { load(offsetof(seccomp_data, nr)); }
  // The low half of an argument: what the kernel reads where the argument is an int. Both supported machines are
  // little-endian.
  void load_low(int argument) { load(offsetof(seccomp_data, args) + 8 * argument); }
  void load_high(int argument) { load(offsetof(seccomp_data, args) + 8 * argument + 4); }
  void give(unsigned action) { statement(BPF_RET | BPF_K, action); }

  // One test of what is loaded; the action where it is true.
  void when(unsigned short test, unsigned value, unsigned action) {
    code.push_back(BPF_JUMP(static_cast<unsigned short>(BPF_JMP | BPF_K | test), value, 0, 1));
    give(action);
  }
  void deny(std::initializer_list<long> numbers, int error = EPERM) {
    for (long number : numbers) when(BPF_JEQ, static_cast<unsigned>(number), fail(error));
  }

  // What `body` says of a call, which must leave no path open: it ends in give().
  template <class Body>
  void call(long number, Body body) {
    code.push_back(BPF_JUMP(BPF_JMP | BPF_K | BPF_JEQ, static_cast<unsigned>(number), 0, 0));
    size_t jump = code.size() - 1;
    body();
    code[jump].jf = static_cast<unsigned char>(code.size() - jump - 1);
  }

  // Denies a call unless the int `argument` is 0: the calling process itself.
  void only_self(long number, int argument) {
    call(number, [&] {
      load_low(argument);
      when(BPF_JEQ, 0, kAllow);
      give(fail(EPERM));
    });
  }

  // Denies a call unless the pointer `argument` is null.
  void only_null(long number, int argument) {
    call(number, [&] {
      load_low(argument);
      code.push_back(BPF_JUMP(BPF_JMP | BPF_K | BPF_JEQ, 0, 0, 3));
      load_high(argument);
      when(BPF_JEQ, 0, kAllow);
      give(fail(EPERM));
    });
  }

 private:
  void statement(unsigned short op, unsigned value) { code.push_back(BPF_STMT(op, value)); }
};

void deny_system(Program& program) {
  // Other processes' memory and descriptors.
  program.deny({SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_kcmp, kPidfdGetfd, kProcessMadvise});
  // Mounts and namespaces.
  program.deny({SYS_mount, SYS_umount2, SYS_pivot_root, SYS_chroot, SYS_unshare, SYS_setns, kMoveMount, kOpenTree,
                kFsopen, kFsconfig, kFsmount, kFspick, kMountSetattr, kStatmount, kListmount});
  program.deny({SYS_open_by_handle_at, SYS_name_to_handle_at});
  // Parts of the kernel that are not divided by namespaces, or where most of its faults were found.
  program.deny({SYS_add_key, SYS_request_key, SYS_keyctl, SYS_bpf, SYS_perf_event_open, SYS_userfaultfd,
                SYS_fanotify_init, SYS_lookup_dcookie, SYS_syslog, SYS_acct, SYS_quotactl, kQuotactlFd});
  program.deny({kIoUringSetup, kIoUringEnter, kIoUringRegister}, ENOSYS);
  // The machine.
  program.deny({SYS_kexec_load, SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_reboot, SYS_swapon,
                SYS_swapoff, SYS_settimeofday, SYS_clock_settime, SYS_clock_adjtime, SYS_adjtimex, SYS_sethostname,
                SYS_setdomainname, SYS_vhangup});
#if defined(__x86_64__)
  program.deny({SYS_iopl, SYS_ioperm, SYS_modify_ldt, SYS_kexec_file_load});
#endif
  // Memory that no limit of a process counts.
  program.deny({SYS_memfd_create, kMemfdSecret}, ENOSYS);
  program.deny({SYS_shmget, SYS_msgget, SYS_semget, SYS_mq_open});
  // clone3 passes its flags by pointer; C libraries fall back on clone.
  program.deny({kClone3}, ENOSYS);
}

void deny_by_argument(Program& program) {
  program.call(SYS_clone, [&] {
    program.load_low(0);
    program.when(BPF_JSET, kNamespaceFlags, fail(EPERM));
    program.give(kAllow);
  });
  program.call(SYS_ioctl, [&] {
    program.load_low(1);
    program.when(BPF_JEQ, kTiocsti, fail(EPERM));
    program.when(BPF_JEQ, kTioclinux, fail(EPERM));
    program.give(kAllow);
  });
  program.call(SYS_personality, [&] {
    program.load_low(0);
    program.when(BPF_JEQ, 0, kAllow);
    program.when(BPF_JEQ, 0xffffffff, kAllow);
    program.give(fail(EPERM));
  });
  program.only_self(SYS_prlimit64, 0);
  program.only_self(SYS_sched_setaffinity, 0);
  program.only_self(SYS_sched_setscheduler, 0);
  program.only_self(SYS_sched_setparam, 0);
  program.only_self(SYS_sched_setattr, 0);
  program.only_self(SYS_setpriority, 1);
  program.only_self(SYS_ioprio_set, 1);
}

void sockets_of_own_network(Program& program) {
  program.call(SYS_socket, [&] {
    program.load_low(0);
    // Others, vsock and Bluetooth among them, know no namespaces.
    for (unsigned family : {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK}) program.when(BPF_JEQ, family, kAllow);
    program.give(fail(EAFNOSUPPORT));
  });
}

void no_sockets(Program& program) {
  program.deny({SYS_socket, SYS_connect, SYS_bind, SYS_listen, SYS_accept, SYS_accept4}, EACCES);
  // A pair of datagram sockets can send to any name; a pair of streams cannot.
  program.call(SYS_socketpair, [&] {
    program.load_low(1);
    program.code.push_back(BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xf));
    program.when(BPF_JEQ, SOCK_STREAM, kAllow);
    program.give(fail(EACCES));
  });
}

void no_changes_by_path(Program& program) {
  program.deny(
      {SYS_fchmodat, kFchmodat2, SYS_fchownat, SYS_setxattr, SYS_lsetxattr, SYS_removexattr, SYS_lremovexattr});
#if defined(__x86_64__)
  program.deny({SYS_chmod, SYS_chown, SYS_lchown, SYS_utime, SYS_utimes, SYS_futimesat});
#endif
  program.only_null(SYS_utimensat, 1);
}

}  // namespace

std::vector<sock_filter> seccomp_program(Filter kind) {
  Program program;
  program.load(offsetof(seccomp_data, arch));
  program.code.push_back(BPF_JUMP(BPF_JMP | BPF_K | BPF_JEQ, kArchitecture, 1, 0));
  program.give(fail(ENOSYS));
  program.load_number();
  // x32, and what came after this list: not looked at is not allowed.
  program.when(BPF_JGE, kX32Bit, fail(ENOSYS));
  program.when(BPF_JGT, kLastKnown, fail(ENOSYS));
  deny_system(program);
  deny_by_argument(program);
  if (kind == Filter::kNamespaces) {
    sockets_of_own_network(program);
  } else {
    no_sockets(program);
    if (kind == Filter::kSharedUser) no_changes_by_path(program);
  }
  program.give(kAllow);
  return program.code;
}

bool install(const std::vector<sock_filter>& program) {
  sock_fprog wanted{static_cast<unsigned short>(program.size()), const_cast<sock_filter*>(program.data())};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &wanted) == 0;
}

}  // namespace tokenring::sandbox
