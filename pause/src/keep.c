/*
 * keep.c - descriptors that criserver leaves with pause under names, to have them back after its restart.
 */
#include "pause.h"

uint32_t names_high;

static uint32_t fds_high, fds_free; /* never used before; list of used ones, index + 1 */
static uint32_t fds_used;

static struct kept_name *find(const char *name)
{
	for (uint32_t i = 0; i < names_high; i++)
		if (name_at(i)->name[0] != 0 && strncmp(name_at(i)->name, name, NAME_SIZE) == 0)
			return name_at(i);
	return NULL;
}

static struct kept_name *new_name(const char *name)
{
	for (uint32_t i = 0; i < MAX_NAMES; i++) {
		if (name_at(i)->name[0] != 0)
			continue;
		if (i >= names_high)
			names_high = i + 1;
		strncpy(name_at(i)->name, name, NAME_SIZE - 1);
		return name_at(i);
	}
	return NULL;
}

static void append(struct kept_name *k, int fd)
{
	uint32_t at = fds_free;
	if (at != 0)
		fds_free = kept_at(at - 1)->next;
	else
		at = ++fds_high;
	*kept_at(at - 1) = (struct kept_fd){.fd = fd};
	if (k->last != 0)
		kept_at(k->last - 1)->next = at;
	else
		k->first = at;
	k->last = at;
	fds_used++;
}

/* The last descriptor of a mount or a file may take the disk's time to close. */
static void close_kept(struct kept_name *k)
{
	for (uint32_t at = k->first, next; at != 0; at = next) {
		next = kept_at(at - 1)->next;
		writer_discard(kept_at(at - 1)->fd);
		*kept_at(at - 1) = (struct kept_fd){.next = fds_free};
		fds_free = at;
		fds_used--;
	}
	k->first = k->last = 0;
}

static uint32_t count(const struct kept_name *k)
{
	uint32_t n = 0;
	for (uint32_t at = k->first; at != 0; at = kept_at(at - 1)->next)
		n++;
	return n;
}

/* Takes the descriptors over, unless it fails; they replace those that the name has, or are more of them. */
int keep(const char *name, int *fds, uint32_t nfds, bool more)
{
	struct kept_name *k = find(name);
	uint32_t replaced = k != NULL && !more ? count(k) : 0;
	if (fds_used - replaced + nfds > MAX_KEPT)
		return -ENOSPC;
	if (k == NULL)
		k = new_name(name);
	if (k == NULL)
		return -ENOSPC;
	if (!more)
		close_kept(k);
	for (uint32_t i = 0; i < nfds; i++) {
		append(k, fds[i]);
		fds[i] = 0;
	}
	return 0;
}

/* A name that is not known is no error: it is dropped. */
int drop(const char *name)
{
	struct kept_name *k = find(name);
	if (k != NULL) {
		close_kept(k);
		memset(k, 0, sizeof *k);
	}
	return 0;
}
