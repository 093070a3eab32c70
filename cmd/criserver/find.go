package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// companions returns the directories where what comes with criserver may be: beside it, and in libexec directories.
func companions() []string {
	dirs := []string{"/usr/libexec/criserver"}
	exe, err := os.Executable()
	if err == nil {
		exe, err = filepath.EvalSymlinks(exe)
	}
	if err == nil {
		beside := filepath.Dir(exe)
		dirs = append([]string{beside, filepath.Join(beside, "../libexec/criserver")}, dirs...)
	}
	return dirs
}

// findPause returns the pause binary: the configured one, or the first companion.
func findPause(configured string) (string, error) {
	candidates := []string{configured}
	if configured == "" {
		candidates = nil
		for _, dir := range companions() {
			candidates = append(candidates, filepath.Join(dir, "pause"))
		}
	}
	for _, path := range candidates {
		info, err := os.Stat(path)
		if err == nil && info.Mode().IsRegular() && unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no executable pause binary at %s", strings.Join(candidates, ", "))
}

// pluginDirs returns the configured directories of CNI plugins and those of the plugins that come with criserver.
func pluginDirs(c CNI) []string {
	dirs := append([]string{}, c.BinDirs...)
	for _, dir := range companions() {
		cni := filepath.Join(dir, "cni")
		if info, err := os.Stat(cni); err == nil && info.IsDir() {
			dirs = append(dirs, cni)
		}
	}
	return dirs
}
