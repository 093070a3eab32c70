/*
 * ldcache.c - a createContainer hook that does what those of GPU vendors do: finds the container's root by the OCI state
 * on its standard input, links libraries under the names that programs want, and makes the loader's cache anew.
 * Arguments: pairs of target and link, inside the root. It is linked dynamically, so the host's loader must be in reach.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

/* The value of a member whose value is a string without escapes. */
static void member(const char *json, const char *name, char *value, size_t room)
{
	char key[64];
	snprintf(key, sizeof key, "\"%s\":\"", name);
	const char *at = strstr(json, key);
	if (at == NULL) {
		fprintf(stderr, "no %s in %s\n", name, json);
		exit(1);
	}
	at += strlen(key);
	size_t n = strcspn(at, "\"");
	if (n >= room)
		n = room - 1;
	memcpy(value, at, n);
	value[n] = 0;
}

static char text[1 << 20];

static const char *read_all(FILE *f)
{
	text[fread(text, 1, sizeof text - 1, f)] = 0;
	return text;
}

int main(int argc, char **argv)
{
	char bundle[PATH_MAX], path[PATH_MAX + 64], root[PATH_MAX];
	member(read_all(stdin), "bundle", bundle, sizeof bundle);
	snprintf(path, sizeof path, "%s/config.json", bundle);
	FILE *config = fopen(path, "r");
	if (config == NULL)
		fail(path);
	const char *json = strstr(read_all(config), "\"root\":");
	if (json == NULL) {
		fprintf(stderr, "no root in %s\n", path);
		return 1;
	}
	member(json, "path", root, sizeof root);
	if (chdir(bundle) != 0 || chdir(root) != 0)
		fail(root);
	if (getcwd(path, sizeof path) == NULL)
		fail("getcwd");
	for (int i = 1; i + 1 < argc; i += 2)
		if (symlink(argv[i], argv[i + 1]) != 0)
			fail(argv[i + 1]);
	execl("/sbin/ldconfig", "ldconfig", "-r", path, "-C", "/etc/ld.so.cache", "/usr/lib/gpu", (char *)NULL);
	fail("/sbin/ldconfig");
}
