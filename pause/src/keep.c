/*
 * keep.c - descriptors that criserver leaves with pause under names, to have them back after its restart.
 */
#include "pause.h"

uint32_t names_high;

static uint32_t nkept; /* of the table: the descriptors of all names, those of one name in order */

static int find(const char *name)
{
	for (uint32_t i = 0; i < names_high; i++)
		if (strncmp(name_at(i)->name, name, NAME_SIZE) == 0)
			return (int)i;
	return -1;
}

static int new_name(const char *name)
{
	int i = find("");
	if (i < 0 && names_high == MAX_NAMES)
		return -1;
	if (i < 0)
		i = (int)names_high++;
	strncpy(name_at((uint32_t)i)->name, name, NAME_SIZE - 1);
	return i;
}

/* The next descriptors of a name, at most max, from place *at of the table on. */
uint32_t kept_next(uint32_t name, uint32_t *at, int *fds, uint32_t max)
{
	uint32_t n = 0;
	for (; *at < nkept && n < max; (*at)++)
		if (kept_at(*at)->name == name)
			fds[n++] = kept_at(*at)->fd;
	return n;
}

/* The last descriptor of a mount or a file may take the disk's time to close. */
static void close_kept(uint32_t name)
{
	uint32_t left = 0;
	for (uint32_t i = 0; i < nkept; i++) {
		if (kept_at(i)->name == name)
			writer_discard(kept_at(i)->fd);
		else
			*kept_at(left++) = *kept_at(i);
	}
	nkept = left;
}

static uint32_t count(uint32_t name)
{
	uint32_t n = 0;
	for (uint32_t i = 0; i < nkept; i++)
		n += kept_at(i)->name == name;
	return n;
}

/* Takes the descriptors over, unless it fails; they replace those that the name has, or are more of them. */
int keep(const char *name, int *fds, uint32_t nfds, bool more)
{
	int i = find(name);
	uint32_t replaced = i >= 0 && !more ? count((uint32_t)i) : 0;
	if (nkept - replaced + nfds > MAX_KEPT)
		return -ENOSPC;
	if (i < 0)
		i = new_name(name);
	if (i < 0)
		return -ENOSPC;
	if (!more)
		close_kept((uint32_t)i);
	for (uint32_t n = 0; n < nfds; n++) {
		*kept_at(nkept++) = (struct kept_fd){.fd = fds[n], .name = (uint32_t)i};
		fds[n] = 0;
	}
	return 0;
}

/* A name that is not known is no error: it is dropped. */
int drop(const char *name)
{
	int i = find(name);
	if (i >= 0) {
		close_kept((uint32_t)i);
		memset(name_at((uint32_t)i), 0, sizeof *name_at(0));
	}
	return 0;
}
