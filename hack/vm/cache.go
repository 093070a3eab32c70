package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// recipe says how something that is kept is made. Two recipes with the same name and inputs make the same thing.
type recipe struct {
	name   string
	inputs []string // all that decides what comes of it
	make   func(ctx context.Context, dir string) error
}

// cache keeps what was made by recipes, each in a directory of its own.
type cache struct {
	dir string
}

// openCache opens the user's cache and sees to it that the machine has what recipes are carried out with.
func openCache(ctx context.Context) (*cache, error) {
	if os.Getuid() != 0 {
		return nil, fmt.Errorf("root file systems are made by root")
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	repo, err := repository()
	if err != nil {
		return nil, err
	}
	if err := tell(ctx, repo, "hack/setup"); err != nil {
		return nil, err
	}
	c := &cache{dir: filepath.Join(base, "criserver", "vm")}
	return c, os.MkdirAll(c.dir, 0o755)
}

// path is where what r makes is kept.
func (c *cache) path(r recipe) string {
	key := sha256.Sum256([]byte(strings.Join(r.inputs, "\x00")))
	return filepath.Join(c.dir, fmt.Sprintf("%s-%x", r.name, key[:6]))
}

// get returns the directory that r makes, which it makes unless it is there. What older recipes of that name made goes.
func (c *cache) get(ctx context.Context, r recipe) (string, error) {
	path := c.path(r)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	fmt.Fprintf(os.Stderr, "making %s\n", filepath.Base(path))
	began := time.Now()
	fresh, err := os.MkdirTemp(c.dir, "new-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(fresh) }() // was renamed
	if err := r.make(ctx, fresh); err != nil {
		return "", fmt.Errorf("make %s: %w", r.name, err)
	}
	fmt.Fprintf(os.Stderr, "made %s in %.0f s\n", filepath.Base(path), time.Since(began).Seconds())
	if err := os.Rename(fresh, path); err != nil && !errors.Is(err, os.ErrExist) { // somebody else may have made it meanwhile
		return "", err
	}
	return path, nil
}

// forget has get make again what these flavours consist of. What older recipes of the same names made goes too.
func (c *cache) forget(chosen []flavour) error {
	for _, f := range chosen {
		for _, r := range []recipe{qemu, f.kernel, f.root} {
			old, err := filepath.Glob(filepath.Join(c.dir, r.name+"-????????????"))
			for _, dir := range old {
				err = errors.Join(err, os.RemoveAll(dir))
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// machine is what a flavour boots with: directories that recipes made.
type machine struct {
	qemu, kernel, root string
}

func (c *cache) machine(ctx context.Context, f flavour) (m machine, err error) {
	if m.qemu, err = c.get(ctx, qemu); err != nil {
		return m, err
	}
	if m.kernel, err = c.get(ctx, f.kernel); err != nil {
		return m, err
	}
	m.root, err = c.get(ctx, f.root)
	return m, err
}

// tell runs a command in dir whose output is of interest only if it fails.
func tell(ctx context.Context, dir, name string, args ...string) error {
	_, err := ask(ctx, dir, name, args...)
	return err
}

// ask runs a command in dir and returns what it prints.
func ask(ctx context.Context, dir, name string, args ...string) (string, error) {
	if !filepath.IsAbs(name) && strings.Contains(name, "/") {
		name = filepath.Join(dir, name)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var problems strings.Builder
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", filepath.Base(name), err, out, problems.String())
	}
	return string(out), nil
}
