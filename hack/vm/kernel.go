package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// bootModules are needed before the guest can look for others: for its disks and what is on them.
var bootModules = []string{"virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "ext4", "erofs"}

//go:embed guest/initrd
var initrdInit []byte

// kernelOf makes vmlinuz, initrd and modules.erofs out of a suite's kernel for virtual machines.
func kernelOf(suite string) recipe {
	t := tree{suite: suite, variant: "extract", packages: []string{"linux-image-cloud-amd64", "kmod", "xz-utils", "busybox-static"}}
	inputs := append(t.inputs(), bootModules...)
	return recipe{name: "kernel-" + suite, inputs: append(inputs, string(initrdInit), "labelled modules"), make: func(ctx context.Context, dir string) error {
		k := kernel{tree: filepath.Join(dir, "tree"), dir: dir}
		if err := t.make(ctx, k.tree); err != nil {
			return err
		}
		if err := k.make(ctx); err != nil {
			return err
		}
		return os.RemoveAll(k.tree)
	}}
}

// kernel is one that is being made out of packages unpacked in tree.
type kernel struct {
	tree, dir, release string
}

func (k *kernel) make(ctx context.Context) error {
	images, err := filepath.Glob(filepath.Join(k.tree, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("%d kernels instead of one: %w", len(images), err)
	}
	k.release = strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	if err := os.Rename(images[0], filepath.Join(k.dir, "vmlinuz")); err != nil {
		return err
	}
	if err := tell(ctx, "/", "chroot", k.tree, "/sbin/depmod", k.release); err != nil {
		return err
	}
	if err := k.initrd(ctx); err != nil {
		return err
	}
	return erofsImage(ctx, filepath.Join(k.dir, "modules.erofs"), filepath.Join(k.tree, "usr/lib/modules"), "modules_object_t")
}

// initrd holds what finds the root file system: busybox, the modules for it in the order of their loading, and init.
func (k *kernel) initrd(ctx context.Context) (err error) {
	f, err := os.Create(filepath.Join(k.dir, "initrd"))
	if err != nil {
		return err
	}
	defer func() { err = closeAfter(f, err) }()
	busybox, err := os.ReadFile(filepath.Join(k.tree, "usr/bin/busybox"))
	if err != nil {
		return err
	}
	a := archive{w: f}
	for _, dir := range []string{"bin", "dev", "proc", "sys", "root", "modules"} {
		a.add(dir, modeDir|0o755, nil)
	}
	a.add("bin/busybox", modeFile|0o755, busybox)
	a.add("init", modeFile|0o755, initrdInit)
	modules, err := k.bootModules(ctx)
	if err != nil {
		return err
	}
	for i, path := range modules {
		module, err := k.module(ctx, path)
		if err != nil {
			return err
		}
		a.add(fmt.Sprintf("modules/%02d-%s", i, strings.TrimSuffix(filepath.Base(path), ".xz")), modeFile|0o644, module)
	}
	return a.end()
}

// bootModules returns the files of bootModules and of what they depend on, as paths in the tree, in the order of loading.
func (k *kernel) bootModules(ctx context.Context) (files []string, err error) {
	seen := map[string]bool{}
	for _, name := range append([]string{"crc32c_generic"}, bootModules...) { // erofs asks for crc32c, which no symbol says
		out, err := ask(ctx, "/", "chroot", k.tree, "/sbin/modprobe", "--ignore-install", "--set-version", k.release, "--show-depends", name)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(out) {
			words := strings.Fields(line) // "insmod FILE" or "builtin NAME"
			if words[0] == "insmod" && !seen[words[1]] {
				seen[words[1]] = true
				files = append(files, words[1])
			}
		}
	}
	return files, nil
}

// module returns a module as busybox wants it: not every kernel decompresses every module.
func (k *kernel) module(ctx context.Context, path string) ([]byte, error) {
	if !strings.HasSuffix(path, ".xz") {
		return os.ReadFile(filepath.Join(k.tree, path))
	}
	out, err := ask(ctx, "/", "chroot", k.tree, "/usr/bin/xz", "-dc", path)
	return []byte(out), err
}
