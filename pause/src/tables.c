/*
 * tables.c - all that pause remembers of its pod. The first in its section: row 0 shares a page with the
 * small variables of the other files.
 */
#include "pause.h"

COLD struct tables tables;
