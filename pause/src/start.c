/*
 * start.c - birth of processes. A child is cloned by the supervisor (by way of a joiner when it is born in
 * another pid namespace), runs its Program and ends in execve, while the supervisor goes on: the child's
 * progress stands in shared memory, and the end of a close-on-exec pipe says when to look at it.
 */
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "pause.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif

#define NAMESPACES ((uint64_t)(CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWTIME))

/* What a child needs; filled before clone3. */
struct birth {
	struct clone_args args;
	const struct msg_start *start;
	struct report *report;
	int program;
	const int *own; /* descriptors of the Program */
	uint32_t nown;
	int pipe; /* write end */
	int join; /* pidfd, 0: none */
	long pid; /* or -errno */
	int pidfd;
};

struct rlimit files_limit;

static struct report *reports; /* one for each task, shared with all children */
#define REPORTS_SIZE (sizeof *reports * (MAX_TASKS + MAX_EXECS))

#ifdef PAUSE_SANITIZE
#define JOINER_STACK (256u << 10)
#else
#define JOINER_STACK (16u << 10)
#endif
COLD static char joiner_stack[JOINER_STACK] __attribute__((aligned(64)));

int starts_init(void)
{
	long at = sys(SYS_mmap, 0, REPORTS_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (sys_failed(at))
		return (int)at;
	reports = (struct report *)at;
	long err = sys(SYS_prlimit64, 0, RLIMIT_NOFILE, 0, &files_limit);
	struct rlimit all = {files_limit.rlim_max, files_limit.rlim_max};
	return (int)(sys_failed(err) ? err : sys(SYS_prlimit64, 0, RLIMIT_NOFILE, &all, 0));
}

/* ---- in the child ---- */

static void sort(int *v, uint32_t n)
{
	for (uint32_t i = 1; i < n; i++) { /* they nearly always come sorted */
		int x = v[i];
		uint32_t k = i;
		for (; k > 0 && v[k - 1] > x; k--)
			v[k] = v[k - 1];
		v[k] = x;
	}
}

/* Closes everything from 3 on but n descriptors, which get sorted. */
static long close_others(int *keep, uint32_t n)
{
	int from = 3;
	sort(keep, n);
	for (uint32_t i = 0; i < n; i++) {
		long err = keep[i] > from ? sys(SYS_close_range, from, keep[i] - 1, 0) : 0;
		if (sys_failed(err))
			return err;
		if (keep[i] >= from)
			from = keep[i] + 1;
	}
	return sys(SYS_close_range, from, ~0u, 0);
}

static _Noreturn void child_fail(struct report *r, enum fail_stage stage, long err)
{
	r->error = (int32_t)-err;
	r->stage = stage;
	r->phase = REPORT_FAILED;
	die(127);
}

static long child_prologue(void)
{
	uint64_t none = 0;
	long err = sys(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
	if (!sys_failed(err))
		err = sys(SYS_prlimit64, 0, RLIMIT_NOFILE, &files_limit, 0);
	if (!sys_failed(err))
		err = sys(SYS_rt_sigprocmask, SIG_SETMASK, &none, 0, 8);
	return err;
}

/* PID 1 of a shared pid namespace: the kernel reaps by itself what a process ignores. */
static _Noreturn void reaper(struct report *r)
{
	struct {
		void (*handler)(int);
		unsigned long flags;
		void *restorer;
		uint64_t mask;
	} ignore = {.handler = SIG_IGN};
	struct pollfd parent = {.fd = pause_pidfd, .events = POLLIN};
	long err = sys(SYS_rt_sigaction, SIGCHLD, &ignore, 0, 8);
	if (!sys_failed(err))
		err = sys(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
	if (!sys_failed(err))
		err = sys(SYS_ppoll, &parent, 1, &(struct timespec){0}, 0, 8);
	if (err != 0)
		child_fail(r, FAIL_CLONE, err < 0 ? err : -ESRCH);
	/* Containers of the pod see it, and one with CAP_SYS_PTRACE reaches its root and can trace it: there is nothing
	 * to gain. Its root is the list of its own descriptors, which is about to be empty for ever. */
	struct {
		uint32_t version;
		int pid;
	} header = {.version = 0x20080522};
	uint32_t no_capabilities[6] = {0};
	err = sys(SYS_chroot, "/proc/self/fdinfo");
	if (!sys_failed(err))
		err = sys(SYS_chdir, "/");
	if (!sys_failed(err))
		err = sys(SYS_capset, &header, no_capabilities);
	if (!sys_failed(err))
		err = sys(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (sys_failed(err))
		child_fail(r, FAIL_CLONE, err);
	(void)sys(SYS_prctl, PR_SET_NAME, "reaper");
	r->phase = REPORT_ENDED;
	(void)sys(SYS_munmap, reports, REPORTS_SIZE);
	(void)sys(SYS_close_range, 0, ~0u, 0);
	for (;;)
		(void)sys(SYS_ppoll, 0, 0, 0, 0, 8); /* every signal that can be blocked is */
}

static _Noreturn void child(struct birth *b)
{
	COLD static int open[MAX_PENDING + 2];
	struct report *r = b->report;
	struct program p = {0};
	if ((b->start->flags & START_REAPER) != 0)
		reaper(r);
	long err = child_prologue();
	if (sys_failed(err))
		child_fail(r, FAIL_CLONE, err);
	err = program_map(b->program, &p);
	if (err == 0)
		err = program_check(&p, b->nown, r);
	if (err != 0)
		child_fail(r, FAIL_PROGRAM, err);
	memcpy(open, b->own, sizeof *open * b->nown);
	open[b->nown] = b->pipe;
	open[b->nown + 1] = pause_pidfd;
	err = close_others(open, b->nown + 2);
	if (sys_failed(err))
		child_fail(r, FAIL_CLONE, err);
	err = program_run(&p, b->own, r);
	if (err != 0)
		child_fail(r, FAIL_INSTR, err);
	r->phase = REPORT_ENDED;
	die(0);
}

/* ---- in the supervisor and in its joiner, which share memory ---- */

static void give_birth(struct birth *b)
{
	b->pid = sys(SYS_clone3, &b->args, sizeof b->args);
	if (b->pid == 0)
		child(b);
}

/* A process of its own only in that its setns does not change pause. */
#ifdef PAUSE_SANITIZE
__attribute__((no_sanitize("address")))
#endif
static int joiner(void *arg)
{
	struct birth *b = arg;
	b->pid = sys(SYS_setns, b->join, CLONE_NEWPID);
	if (!sys_failed(b->pid))
		give_birth(b);
	sys(SYS_exit, 0);
	return 0;
}

static void give_birth_elsewhere(struct birth *b)
{
	siginfo_t info;
	b->args.flags |= CLONE_PARENT;
	b->args.exit_signal = 0; /* with CLONE_PARENT it is the joiner's */
	int pid = clone(joiner, joiner_stack + sizeof joiner_stack, CLONE_VM | CLONE_VFORK | CLONE_FILES | SIGCHLD, b);
	if (pid < 0)
		b->pid = -errno;
	else
		(void)sys(SYS_waitid, P_PID, pid, &info, WEXITED, 0); /* it is our child and has exited */
}

/* The task that a request starts: a new one for an exec or a reaper. */
static int start_task(const struct msg_start *m, struct task **t)
{
	if ((m->flags & ~(START_EXEC | START_CGROUP | START_JOIN | START_REAPER)) != 0 || (m->clone_flags & ~NAMESPACES) != 0 || m->task == 0)
		return -EINVAL;
	*t = task_find(m->task);
	if ((m->flags & (START_EXEC | START_REAPER)) != 0) {
		if (*t != NULL)
			return -EEXIST;
		*t = task_new(m->task, true);
		return *t != NULL ? 0 : -ENOSPC;
	}
	if (*t == NULL)
		return -ENOENT;
	return (*t)->phase == PHASE_ADDED ? 0 : -EALREADY;
}

/* Sorts out the descriptors of a request: the Program, cgroup, pidfd, and those of the Program. */
static int start_fds(const struct request *r, struct birth *b)
{
	uint32_t flags = b->start->flags, have = r->nfds, at = (flags & START_REAPER) == 0;
	uint32_t need = at + ((flags & START_CGROUP) != 0) + ((flags & START_JOIN) != 0);
	if (have < need || have - need > PROGRAM_MAX_FDS)
		return -EBADMSG;
	if ((flags & START_CGROUP) != 0) {
		b->args.flags |= CLONE_INTO_CGROUP;
		b->args.cgroup = (uint64_t)r->fds[at++];
	}
	if ((flags & START_JOIN) != 0)
		b->join = r->fds[at++];
	b->program = r->fds[0]; /* not looked at by a reaper */
	b->own = r->fds + need;
	b->nown = have - need;
	return 0;
}

/* Nothing came to life: the container may be started again, an exec is forgotten. */
static int start_failed(struct task *t, enum fail_stage stage, uint32_t index, int error)
{
	struct caller starter = t->starter;
	unwatch_close(&t->start_pipe);
	unwatch_close(&t->pidfd);
	t->pid = 0;
	t->phase = PHASE_ADDED;
	if (is_exec(t))
		task_free(t);
	reply_failed(starter, stage, index, error);
	return ANSWERED;
}

int start(struct request *r)
{
	struct task *t;
	int ends[2];
	struct birth b = {.start = &r->body.start};
	int err = start_fds(r, &b);
	if (err == 0)
		err = start_task(b.start, &t);
	if (err != 0)
		return err;
	t->starter = r->from;
	if (!is_exec(t))
		term_since = 0; /* whoever goes on starting containers does not want the end of the pod */
	err = (int)sys(SYS_pipe2, ends, O_CLOEXEC);
	if (err != 0)
		return start_failed(t, FAIL_CLONE, 0, -err);
	t->phase = PHASE_STARTING;
	t->start_pipe = ends[0];
	b.pipe = ends[1];
	b.report = &reports[t->index];
	memset((void *)b.report, 0, sizeof *b.report);
	b.args.flags |= CLONE_PIDFD | b.start->clone_flags;
	if ((b.start->flags & START_REAPER) != 0)
		b.args.flags |= CLONE_NEWPID;
	b.args.exit_signal = SIGCHLD;
	b.args.pidfd = (uint64_t)(uintptr_t)&b.pidfd;
	if (b.join != 0)
		give_birth_elsewhere(&b);
	else
		give_birth(&b);
	(void)sys(SYS_close, ends[1]);
	if (sys_failed(b.pid))
		return start_failed(t, FAIL_CLONE, 0, (int)-b.pid);
	t->pid = (int)b.pid;
	t->pidfd = b.pidfd;
	if (watch(t->start_pipe, EPOLLIN, EV_REPORT, t->index) != 0 || watch(t->pidfd, EPOLLIN, EV_PIDFD, t->index) != 0) {
		siginfo_t info; /* out of kernel memory */
		(void)sys(SYS_pidfd_send_signal, t->pidfd, SIGKILL, 0, 0);
		(void)sys(SYS_waitid, P_PIDFD, t->pidfd, &info, WEXITED, 0);
		return start_failed(t, FAIL_CLONE, 0, ENOMEM);
	}
	return ANSWERED;
}

/* The process is alive: its execve has succeeded, or it needs none. */
static bool started(struct task *t)
{
	struct msg_started m = {.pid = t->pid};
	uint32_t phase = reports[t->index].phase;
	if (phase != REPORT_EXECS && phase != REPORT_ENDED)
		return false;
	unwatch_close(&t->start_pipe);
	t->phase = PHASE_RUNNING;
	reply(t->starter, MSG_STARTED, &m, sizeof m, t->pidfd);
	return true;
}

/* The pipe has ended. Without an execve the child is dying, or its Program has closed what it must not: then it shall. */
void start_report(struct task *t)
{
	if (started(t))
		return;
	unwatch_close(&t->start_pipe);
	(void)sys(SYS_pidfd_send_signal, t->pidfd, SIGKILL, 0, 0);
}

/* A process that was being started is dead. */
void start_died(struct task *t, int32_t status)
{
	const struct report *r = &reports[t->index];
	if (started(t))
		task_exited(t, status);
	else if (r->phase == REPORT_FAILED)
		(void)start_failed(t, r->stage, r->index, r->error);
	else
		(void)start_failed(t, FAIL_KILLED, r->index, status);
}
