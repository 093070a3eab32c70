/*
 * request.c - what each request means, and listings.
 */
#include "pause.h"

#ifndef PAUSE_BUILD
#define PAUSE_BUILD "pause 1"
#endif

bool listing;

static struct {
	struct caller to;
	uint32_t task, name; /* the next to be told */
	uint32_t fd;	     /* of that name, see kept_next */
} list;

static int hello(const struct request *r)
{
	const struct msg_hello *h = &r->body.hello;
	struct msg_welcome w = {.pid = pause_pid, .max_tasks = MAX_TASKS, .max_kept = MAX_KEPT, .exit_slots = exit_slots, .build = PAUSE_BUILD};
	if (h->min_version > PROTOCOL_VERSION || h->max_version < PROTOCOL_VERSION)
		return -EPROTONOSUPPORT;
	reply(r->from, MSG_WELCOME, &w, sizeof w, pause_pidfd);
	control_greeted = true;
	exits_tell();
	return ANSWERED;
}

static int list_begin(struct caller to)
{
	memset(&list, 0, sizeof list);
	list.to = to;
	listing = true;
	list_go_on();
	return ANSWERED;
}

static bool terminated(const char *name)
{
	return name[0] != 0 && memchr(name, 0, NAME_SIZE) != NULL;
}

static int serve(struct request *r)
{
	if (!control_greeted && r->type != MSG_HELLO)
		return -EPROTO;
	switch (r->type) {
	case MSG_HELLO:
		return hello(r);
	case MSG_BOOT:
		return boot(r);
	case MSG_ADD:
		return terminated(r->body.add.name) ? task_add(r) : -EINVAL;
	case MSG_START:
		return start(r);
	case MSG_REOPEN:
		return task_reopen(r);
	case MSG_RESIZE:
		return task_resize(&r->body.resize);
	case MSG_REMOVE:
		return task_remove(r->body.task.task);
	case MSG_KEEP:
		return terminated(r->body.name.name) ? keep(r->body.name.name, r->fds, r->nfds, false) : -EINVAL;
	case MSG_DROP:
		return terminated(r->body.name.name) ? drop(r->body.name.name) : -EINVAL;
	case MSG_LIST:
		return list_begin(r->from);
	case MSG_REEXEC:
		return reexec_begin(r);
	case MSG_ATTACH:
		return attach(r);
	case MSG_DETACH:
		return detach(r);
	case MSG_END_STDIN:
		return task_end_stdin(r->body.task.task);
	default:
		return -EOPNOTSUPP;
	}
}

/* Serves a request, or says what is wrong with its form. */
void request_serve(struct request *r, int err)
{
	if (err == 0)
		err = serve(r);
	if (err == 0)
		reply(r->from, MSG_OK, "", 0, 0);
	else if (err != ANSWERED)
		reply_failed(r->from, FAIL_REQUEST, 0, -err);
	if (err == 0 && r->type == MSG_BOOT)
		(void)writer_start(); /* so that the first container need not wait; it asks again */
}

static int list_task(const struct task *t)
{
	struct log *l = log_at(t->index);
	struct msg_task m = {
		.task = t->id,
		.state = task_public(t),
		.fds = task_open_fds(t),
		.log_bytes = atomic_load(&l->bytes),
		.log_dropped = atomic_load(&l->dropped),
	};
	bool runs = m.state == TASK_RUNNING;
	m.pid = runs ? t->pid : 0;
	memcpy(m.name, t->name, sizeof m.name);
	if (m.state == TASK_EXITED)
		m.record = t->record;
	return control_send(MSG_TASK, list.to.id, &m, sizeof m, &t->pidfd, runs);
}

/* One packet of a name; the last of them is not full. */
static int list_name(uint32_t name)
{
	struct msg_name m;
	int fds[MSG_MAX_FDS];
	uint32_t at = list.fd, n = kept_next(name, &at, fds, MSG_MAX_FDS);
	memcpy(m.name, name_at(name)->name, sizeof m.name);
	int err = control_send(MSG_KEPT, list.to.id, &m, sizeof m, fds, n);
	if (err == 0)
		list.fd = n == MSG_MAX_FDS ? at : 0;
	return err;
}

/* Sends as much of a listing as there is room for. */
void list_go_on(void)
{
	int err = 0;
	for (; listing && err == 0 && list.task < tasks_high; list.task += err == 0)
		if (task_public(task_at(list.task)) != 0)
			err = list_task(task_at(list.task));
	for (; listing && err == 0 && list.name < names_high; list.name += err == 0 && list.fd == 0)
		if (name_at(list.name)->name[0] != 0)
			err = list_name(list.name);
	if (!listing || err == -EAGAIN)
		return;
	listing = false;
	reply(list.to, MSG_OK, "", 0, 0);
}
