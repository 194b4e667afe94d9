// Has the file calls of a program and its children fail, one in each run: calls on files below a folder are counted, and the
// one of a given number fails, is done by half, is late, or is the last thing that the program does. Works below libc
// (seccomp's user notification), since Bun makes system calls of its own.
//
//   faults FOLDER NUMBER KIND REPORT -- PROGRAM ARGUMENTS...
//
// KIND: none, short, delay, kill, or an errno's name; "unsynced": all calls of fsync on folders fail, as on a file system that
// has none. REPORT gets the number of calls, and on a second line the call that was chosen. The exit code is the program's; 128
// + the signal where one ended it; 99 where this cannot be done here.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CANNOT 99
#define DELAY_US 300000

typedef struct seccomp_notif Call;

/** `path`: which argument is one; -1 where the first is a file descriptor. */
static const struct {
  int number;
  int path;
  const char *name;
} CALLS[] = {
    {SYS_open, 0, "open"},         {SYS_openat, 1, "openat"},     {SYS_rename, 0, "rename"},   {SYS_renameat, 1, "renameat"},
    {SYS_renameat2, 1, "renameat2"}, {SYS_unlink, 0, "unlink"},   {SYS_unlinkat, 1, "unlinkat"}, {SYS_link, 0, "link"},
    {SYS_linkat, 1, "linkat"},     {SYS_mkdir, 0, "mkdir"},       {SYS_mkdirat, 1, "mkdirat"}, {SYS_rmdir, 0, "rmdir"},
    {SYS_truncate, 0, "truncate"}, {SYS_read, -1, "read"},        {SYS_pread64, -1, "pread"},  {SYS_write, -1, "write"},
    {SYS_pwrite64, -1, "pwrite"},  {SYS_writev, -1, "writev"},    {SYS_fsync, -1, "fsync"},    {SYS_fdatasync, -1, "fdatasync"},
    {SYS_ftruncate, -1, "ftruncate"}, {SYS_fallocate, -1, "fallocate"},
};
#define COUNT ((int)(sizeof CALLS / sizeof *CALLS))

static const struct {
  const char *name;
  int value;
} ERRORS[] = {{"ENOSPC", ENOSPC}, {"EIO", EIO}, {"EMFILE", EMFILE}, {"EDQUOT", EDQUOT}, {"EINTR", EINTR}, {"EROFS", EROFS}};

static void fail(const char *what) {
  perror(what);
  exit(CANNOT);
}

static int indexOf(int number) {
  for (int i = 0; i < COUNT; i++)
    if (CALLS[i].number == number) return i;
  return -1;
}

/** All of CALLS are asked about, everything else continues as ever. */
static int watched(void) {
  struct sock_filter filter[COUNT + 3];
  int n = 0;
  filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
  for (int i = 0; i < COUNT; i++)
    filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)CALLS[i].number, (unsigned char)(COUNT - i), 0);
  filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
  struct sock_fprog program = {(unsigned short)n, filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -1;
  return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}

static void sendHandle(int to, int fd) {
  char byte = 0, control[CMSG_SPACE(sizeof fd)] = {0};
  struct iovec data = {&byte, 1};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  struct cmsghdr *part = CMSG_FIRSTHDR(&message);
  part->cmsg_level = SOL_SOCKET, part->cmsg_type = SCM_RIGHTS, part->cmsg_len = CMSG_LEN(sizeof fd);
  memcpy(CMSG_DATA(part), &fd, sizeof fd);
  if (sendmsg(to, &message, 0) < 0) fail("sendmsg");
}

static int receiveHandle(int from) {
  int fd;
  char byte, control[CMSG_SPACE(sizeof fd)];
  struct iovec data = {&byte, 1};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  if (recvmsg(from, &message, 0) <= 0 || !CMSG_FIRSTHDR(&message)) exit(CANNOT);
  memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
  return fd;
}

static void linkOf(int pid, long fd, char *path, size_t size) {
  char name[64];
  snprintf(name, sizeof name, "/proc/%d/fd/%ld", pid, fd);
  ssize_t n = readlink(name, path, size - 1);
  path[n > 0 ? n : 0] = 0;
}

static ssize_t memoryOf(int pid, unsigned long at, void *to, size_t bytes) {
  char name[32];
  snprintf(name, sizeof name, "/proc/%d/mem", pid);
  int fd = open(name, O_RDWR | O_CLOEXEC);
  ssize_t got = fd < 0 ? -1 : pread(fd, to, bytes, (off_t)at);
  if (fd >= 0) close(fd);
  return got;
}

static void pathOf(const Call *call, int i, char *path, size_t size) {
  path[0] = 0;
  const int pid = (int)call->pid, at = CALLS[i].path;
  if (at < 0) return linkOf(pid, (long)call->data.args[0], path, size);
  ssize_t got = memoryOf(pid, call->data.args[at], path, size - 1);
  path[got > 0 ? got : 0] = 0;
  long fd;
  char rest[1024], folder[2048];
  if (sscanf(path, "/proc/self/fd/%ld%1000s", &fd, rest) == 2) {
    linkOf(pid, fd, folder, sizeof folder);
    snprintf(path, size, "%s%s", folder, rest);
  }
}

static int isFolder(int pid, long fd) {
  char name[64];
  struct stat found;
  snprintf(name, sizeof name, "/proc/%d/fd/%ld", pid, fd);
  return !stat(name, &found) && S_ISDIR(found.st_mode);
}

/** Does half of a read or a write in the program's place; -1 where it is no such call or too short. */
static long half(const Call *call, int i) {
  const char *name = CALLS[i].name;
  const int writes = !strcmp(name, "write") || !strcmp(name, "pwrite"), reads = !strcmp(name, "read") || !strcmp(name, "pread");
  const size_t bytes = call->data.args[2] / 2;
  if ((!writes && !reads) || bytes == 0) return -1;
  char status[64], line[256];
  int process = (int)call->pid;
  snprintf(status, sizeof status, "/proc/%d/status", process);
  FILE *file = fopen(status, "r");
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "Tgid: %d", &process) == 1) break;
  if (file) fclose(file);
  int handle = (int)syscall(SYS_pidfd_open, process, 0);
  int fd = (int)syscall(SYS_pidfd_getfd, handle, (int)call->data.args[0], 0);
  close(handle);
  if (fd < 0) return -1;
  char *buffer = malloc(bytes);
  const int placed = name[0] == 'p';
  const off_t at = (off_t)call->data.args[3];
  ssize_t done = -1;
  if (writes && memoryOf((int)call->pid, call->data.args[1], buffer, bytes) == (ssize_t)bytes)
    done = placed ? pwrite(fd, buffer, bytes, at) : write(fd, buffer, bytes);
  if (reads) {
    done = placed ? pread(fd, buffer, bytes, at) : read(fd, buffer, bytes);
    snprintf(status, sizeof status, "/proc/%d/mem", (int)call->pid);
    int memory = open(status, O_WRONLY | O_CLOEXEC);
    if (done > 0 && pwrite(memory, buffer, (size_t)done, (off_t)call->data.args[1]) != done) done = -1;
    close(memory);
  }
  free(buffer);
  close(fd);
  return done;
}

int main(int argc, char **argv) {
  if (argc < 7 || strcmp(argv[5], "--")) return CANNOT;
  const char *folder = argv[1], *kind = argv[3];
  const long chosen = atol(argv[2]);
  int error = 0, pair[2];
  for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++)
    if (!strcmp(kind, ERRORS[i].name)) error = ERRORS[i].value;
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) fail("socketpair");
  const int child = fork();
  if (child == 0) {
    int listener = watched();
    if (listener < 0) fail("seccomp");
    sendHandle(pair[1], listener);
    close(listener);
    execvp(argv[6], argv + 6);
    _exit(127);
  }
  close(pair[1]);
  const int listener = receiveHandle(pair[0]);
  FILE *report = fopen(argv[4], "w");
  if (!report) fail(argv[4]);
  long seen = 0;
  int status = -1, patience = 100;
  char told[4200] = "", path[4096];
  for (;;) {
    struct pollfd ready = {listener, POLLIN, 0};
    const int n = poll(&ready, 1, 100);
    if (status < 0 && waitpid(child, &status, WNOHANG) <= 0) status = -1;
    if (ready.revents & POLLHUP || (status >= 0 && --patience < 0)) break;
    if (n <= 0 || !(ready.revents & POLLIN)) continue;
    Call call = {0};
    struct seccomp_notif_resp answer = {0};
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call)) continue;
    answer.id = call.id;
    answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    const int i = indexOf(call.data.nr);
    pathOf(&call, i, path, sizeof path);
    if (!strcmp(kind, "unsynced") && call.data.nr == SYS_fsync && isFolder((int)call.pid, (long)call.data.args[0]))
      answer.flags = 0, answer.error = -EINVAL;
    if (!strncmp(path, folder, strlen(folder)) && ++seen == chosen && strcmp(kind, "none")) {
      snprintf(told, sizeof told, "%s %s %s", kind, CALLS[i].name, path);
      long done = strcmp(kind, "short") ? -1 : half(&call, i);
      if (!strcmp(kind, "delay")) usleep(DELAY_US);
      if (!strcmp(kind, "kill")) kill(child, SIGKILL);
      if (done >= 0) answer.flags = 0, answer.val = done;
      if (error) answer.flags = 0, answer.error = -error;
    }
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
  }
  if (status < 0) waitpid(child, &status, 0);
  fprintf(report, "%ld\n%s\n", seen, told);
  fclose(report);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
