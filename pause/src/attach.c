/*
 * attach.c - copies of what containers write, for clients that are attached. Each has pipes of its own, which hold what it
 * has not read yet; a copy that does not fit in whole ends that client and delays nobody. Copies are made by whoever reads
 * the container's output, so both threads come here; what they do under the lock never waits.
 */
#include <fcntl.h>
#include <stdatomic.h>

#include "pause.h"

struct attached {
	uint64_t client; /* 0: free */
	uint64_t lost;	 /* bytes that did not fit: it was cut there */
	uint32_t index;	 /* of the container */
	int fd[2];	 /* writing ends, for stdout and stderr; 0: none, or ended */
};

COLD static struct attached table[MAX_ATTACHED];
static _Atomic uint32_t count; /* of clients; without any the lock is not taken */
static atomic_flag locked;

static void lock(void)
{
	while (atomic_flag_test_and_set_explicit(&locked, memory_order_acquire))
		(void)sys(SYS_sched_yield);
}

static void unlock(void)
{
	atomic_flag_clear_explicit(&locked, memory_order_release);
}

static void end(struct attached *a, uint32_t stream)
{
	if (a->fd[stream] != 0)
		(void)sys(SYS_close, a->fd[stream]);
	a->fd[stream] = 0;
}

static void copy(struct attached *a, uint32_t stream, const char *data, uint32_t size)
{
	long n = sys(SYS_write, a->fd[stream], data, size);
	if (n == (long)size)
		return;
	if (n > 0 || n == -EAGAIN)
		a->lost = size - (n > 0 ? (uint32_t)n : 0);
	end(a, 0); /* EPIPE: the client is gone */
	end(a, 1);
}

/* A piece of output, to all that are attached to its stream. */
void attach_copy(uint32_t index, uint32_t stream, const char *data, uint32_t size)
{
	if (atomic_load(&count) == 0)
		return;
	lock();
	for (uint32_t i = 0; i < MAX_ATTACHED; i++)
		if (table[i].client != 0 && table[i].index == index && table[i].fd[stream] != 0)
			copy(&table[i], stream, data, size);
	unlock();
}

/* No more will come of a stream. */
void attach_end(uint32_t index, uint32_t stream)
{
	if (atomic_load(&count) == 0)
		return;
	lock();
	for (uint32_t i = 0; i < MAX_ATTACHED; i++)
		if (table[i].client != 0 && table[i].index == index)
			end(&table[i], stream);
	unlock();
}

static struct attached *find(uint64_t client)
{
	for (uint32_t i = 0; i < MAX_ATTACHED; i++)
		if (table[i].client == client)
			return &table[i];
	return NULL;
}

static void forget(struct attached *a)
{
	end(a, 0);
	end(a, 1);
	memset(a, 0, sizeof *a);
	atomic_fetch_sub(&count, 1);
}

/* All clients of a connection that has ended. */
void attach_forget_all(void)
{
	if (atomic_load(&count) == 0)
		return;
	lock();
	for (uint32_t i = 0; i < MAX_ATTACHED; i++)
		if (table[i].client != 0)
			forget(&table[i]);
	unlock();
}

static int check(const struct msg_attach *m, const struct request *r, const struct task *t)
{
	if (t == NULL || is_exec(t))
		return -ENOENT;
	if (t->phase >= PHASE_DRAINING)
		return -ESRCH;
	if (m->client == 0 || (m->flags & ~ATTACH_STDIN) != 0 || (m->fds & ~3u) != 0)
		return -EINVAL;
	if ((uint32_t)__builtin_popcount(m->fds) != r->nfds)
		return -EBADMSG;
	for (uint32_t i = 0; i < r->nfds; i++)
		if (sys_failed(sys(SYS_fcntl, r->fds[i], F_GETPIPE_SZ)) || set_nonblocking(r->fds[i]) != 0)
			return -EINVAL; /* a write to anything else may wait */
	return 0;
}

/* Takes the pipes over. One whose stream has ended already ends at once. */
static int add(const struct msg_attach *m, struct request *r, uint32_t index)
{
	if (find(m->client) != NULL)
		return -EEXIST;
	struct attached *a = find(0);
	if (a == NULL)
		return -ENOSPC;
	*a = (struct attached){.client = m->client, .index = index};
	for (uint32_t s = 0, n = 0; s < 2; s++) {
		if ((m->fds & 1u << s) == 0)
			continue;
		a->fd[s] = r->fds[n];
		r->fds[n++] = 0;
		if (atomic_load(&log_at(index)->stream[s].fd) == 0)
			end(a, s);
	}
	atomic_fetch_add(&count, 1);
	return 0;
}

int attach(struct request *r)
{
	const struct msg_attach *m = &r->body.attach;
	const struct task *t = task_find(m->task);
	int err = check(m, r, t);
	if (err != 0)
		return err;
	lock();
	err = add(m, r, t->index);
	unlock();
	if (err != 0)
		return err;
	int in = t->fd[t->fd[ADD_TTY] != 0 ? ADD_TTY : ADD_STDIN];
	reply(r->from, MSG_ATTACHED, "", 0, (m->flags & ATTACH_STDIN) != 0 ? in : 0);
	return ANSWERED;
}

int detach(const struct request *r)
{
	struct msg_detached answer = {0};
	lock();
	struct attached *a = r->body.detach.client != 0 ? find(r->body.detach.client) : NULL;
	if (a != NULL) {
		answer.lost = a->lost;
		forget(a);
	}
	unlock();
	if (a == NULL)
		return -ENOENT;
	reply(r->from, MSG_DETACHED, &answer, sizeof answer, 0);
	return ANSWERED;
}
