/*
 * request.c - what each request means, and listings.
 */
#include "pause.h"

#ifndef PAUSE_BUILD
#define PAUSE_BUILD "pause 1"
#endif

bool listing;

static struct {
	uint32_t id;
	uint32_t task; /* next one to be told */
	uint32_t name;
	uint32_t fd; /* of that name, index + 1; 0: begin */
	bool begun;  /* something of that name has been told */
} list;

static void hello(const struct request *r)
{
	const struct msg_hello *h = &r->body.hello;
	struct msg_welcome w = {.pid = pause_pid, .max_tasks = MAX_TASKS, .max_kept = MAX_KEPT, .exit_slots = exit_slots, .build = PAUSE_BUILD};
	if (h->min_version > PROTOCOL_VERSION || h->max_version < PROTOCOL_VERSION) {
		reply_failed(r->id, EPROTONOSUPPORT);
		return;
	}
	reply(MSG_WELCOME, r->id, &w, sizeof w, pause_pidfd);
	control_greeted = true;
	tasks_answer();
}

static bool terminated(const char *name)
{
	return name[0] != 0 && memchr(name, 0, NAME_SIZE) != NULL;
}

static void done(uint32_t id, int err)
{
	if (err != 0)
		reply_failed(id, -err);
	else
		reply(MSG_OK, id, NULL, 0, 0);
}

void request_serve(struct request *r)
{
	if (!control_greeted && r->type != MSG_HELLO) {
		reply_failed(r->id, EPROTO);
		return;
	}
	int err;
	switch (r->type) {
	case MSG_HELLO:
		hello(r);
		return;
	case MSG_BOOT: {
		struct msg_failed f = {0};
		if (boot(r, &f) != 0)
			reply_failure(r->id, &f);
		else
			done(r->id, 0);
		return;
	}
	case MSG_ADD:
		err = terminated(r->body.add.name) ? task_add(r) : -EINVAL;
		break;
	case MSG_START:
		err = start(r);
		if (err == 0)
			return; /* answered when the child has told */
		break;
	case MSG_REOPEN:
		err = task_reopen(r);
		if (err == 0)
			return; /* answered by the writer */
		break;
	case MSG_RESIZE:
		err = task_resize(&r->body.resize);
		break;
	case MSG_REMOVE:
		err = task_remove(r->body.task.task);
		break;
	case MSG_KEEP:
		err = terminated(r->body.name.name) ? keep(r->body.name.name, r->fds, r->nfds, false) : -EINVAL;
		break;
	case MSG_DROP:
		err = terminated(r->body.name.name) ? drop(r->body.name.name) : -EINVAL;
		break;
	case MSG_LIST:
		list_begin(r->id);
		return;
	case MSG_REEXEC:
		err = reexec_begin(r);
		if (err == 0)
			return; /* answered by the next image */
		break;
	default:
		err = -EOPNOTSUPP;
	}
	done(r->id, err);
}

void list_begin(uint32_t id)
{
	memset(&list, 0, sizeof list);
	list.id = id;
	listing = true;
	(void)list_go_on();
}

static int list_task(const struct task *t)
{
	uint32_t i = t->index;
	struct msg_task m = {
		.task = t->id,
		.state = task_public(t),
		.fds = task_open_fds(t),
		.log_bytes = atomic_load(&log_at(i)->bytes),
		.log_dropped = atomic_load(&log_at(i)->dropped),
	};
	bool runs = m.state == TASK_RUNNING;
	m.pid = runs ? t->pid : 0;
	memcpy(m.name, t->name, sizeof m.name);
	if (m.state == TASK_EXITED)
		m.record = t->record;
	return control_send(MSG_TASK, list.id, &m, sizeof m, &t->pidfd, runs);
}

/* The next packet of a name, at most MSG_MAX_FDS descriptors. */
static int list_name(const struct kept_name *k)
{
	struct msg_name m;
	int fds[MSG_MAX_FDS] = {0};
	uint32_t n = 0, at = list.begun ? list.fd : k->first;
	memcpy(m.name, k->name, sizeof m.name);
	for (; at != 0 && n < MSG_MAX_FDS; at = kept_at(at - 1)->next)
		fds[n++] = kept_at(at - 1)->fd;
	int err = control_send(MSG_KEPT, list.id, &m, sizeof m, fds, n);
	if (err != 0)
		return err;
	list.begun = at != 0;
	list.fd = at;
	if (at == 0)
		list.name++;
	return 0;
}

int list_go_on(void)
{
	int err = 0;
	if (!listing)
		return 0;
	while (err == 0 && list.task < tasks_high) {
		const struct task *t = task_at(list.task);
		if (task_public(t) != 0)
			err = list_task(t);
		if (err == 0)
			list.task++;
	}
	while (err == 0 && list.name < names_high) {
		const struct kept_name *k = name_at(list.name);
		if (k->name[0] != 0)
			err = list_name(k);
		else
			list.name++;
	}
	if (err == 0)
		err = control_send(MSG_OK, list.id, NULL, 0, NULL, 0);
	if (err != -EAGAIN)
		listing = false;
	return err;
}
