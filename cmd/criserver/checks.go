package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func checkUser(Config) finding {
	if uid := os.Geteuid(); uid != 0 {
		return finding{missing, fmt.Sprintf("running as user %d", uid), "only root may make containers", "run criserver as root"}
	}
	return finding{found: "root"}
}

func checkFiles(Config) finding {
	const wanted = 65536
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return finding{degraded, err.Error(), "it is not known how many pods fit", "see getrlimit(2)"}
	}
	found := fmt.Sprintf("at most %d", limit.Max)
	if limit.Max < wanted {
		return finding{degraded, found, "pods beyond some hundreds fail to start", fmt.Sprintf("raise the limit to %d (LimitNOFILE=)", wanted)}
	}
	return finding{found: found}
}

func checkPause(c Config) finding {
	path, err := findPause(c.Pause)
	if err != nil {
		return finding{missing, err.Error(), "no pod can start", "run make build, or set pause in the configuration"}
	}
	return finding{found: path}
}

// existing returns dir or the nearest parent that exists: where it would be made.
func existing(dir string) string {
	for dir != "/" {
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return dir
}

// writable says whether dir is a directory that files can be made in, and describes its file system.
func writable(dir string) (s unix.Statfs_t, ok bool) {
	info, err := os.Stat(dir)
	ok = err == nil && info.IsDir() && unix.Statfs(dir, &s) == nil && s.Flags&unix.ST_RDONLY == 0 && unix.Access(dir, unix.W_OK) == nil
	return s, ok
}

func checkRoot(c Config) finding {
	dir := existing(c.Root)
	s, ok := writable(dir)
	if !ok {
		return finding{missing, dir + " cannot be written", "images cannot be kept", "mount it read-write, or choose another root"}
	}
	if s.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return finding{missing, dir + " is on an overlay", "containers cannot have a writable layer there", "choose a root on ext4, xfs, btrfs or tmpfs"}
	}
	free := float64(s.Bavail) / float64(max(s.Blocks, 1))
	found := fmt.Sprintf("%s, %.0f %% free", c.Root, 100*free)
	if free < 0.05 {
		return finding{degraded, found, "pulls are about to fail", "free space, or choose another root"}
	}
	return finding{found: found}
}

func checkState(c Config) finding {
	dir := existing(c.State)
	s, ok := writable(dir)
	if !ok {
		return finding{missing, dir + " cannot be written", "no pod can start", "choose another state directory"}
	}
	if s.Type != unix.TMPFS_MAGIC {
		return finding{degraded, c.State + " is not on a tmpfs", "records of pods go through a disk, and are stale after a reboot", "choose a state directory under /run"}
	}
	return finding{found: c.State}
}

func checkSocket(c Config) finding {
	path := strings.TrimPrefix(c.Address, "unix://")
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return finding{found: path + ", free"}
	case err != nil:
		return finding{degraded, err.Error(), "criserver may fail to listen", "choose another address"}
	case info.Mode().Type() != fs.ModeSocket:
		return finding{missing, path + " is not a socket", "criserver cannot listen", "remove it, or choose another address"}
	}
	return finding{found: path + ", there already: criserver runs, or was killed"}
}

func checkCerts(c Config) finding {
	for _, dir := range c.CertsDirs {
		if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
			return finding{found: fmt.Sprintf("%d in %s", len(entries), dir)}
		}
	}
	return finding{found: "none configured: every registry is asked over HTTPS, without mirrors"}
}

func checkNetwork(c Config) finding {
	entries, err := os.ReadDir(c.CNI.ConfDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return finding{missing, err.Error(), "only pods on the host network run", "mend the directory, or set cni.conf_dir"}
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext == ".conflist" || ext == ".conf" || ext == ".json" {
			return finding{found: filepath.Join(c.CNI.ConfDir, e.Name())}
		}
	}
	if c.Network.Default == "on" {
		return finding{found: fmt.Sprintf("embedded default: bridge %s, %s", c.Network.Bridge, strings.Join(c.Network.Subnets, " and "))}
	}
	return finding{missing, "no configuration in " + c.CNI.ConfDir, "only pods on the host network run", "install a CNI network, or set network.default to on"}
}

// defaultPlugins are those that the embedded default network needs.
var defaultPlugins = []string{"bridge", "host-local", "portmap"}

func checkPlugins(c Config) finding {
	dirs := pluginDirs(c.CNI)
	var absent []string
	for _, name := range defaultPlugins {
		if !slices.ContainsFunc(dirs, func(dir string) bool { return unix.Access(filepath.Join(dir, name), unix.X_OK) == nil }) {
			absent = append(absent, name)
		}
	}
	if len(absent) > 0 {
		return finding{degraded, strings.Join(absent, ", ") + " not in " + strings.Join(dirs, ", "),
			"networks that use them fail, the default one among them", "run make build, or install them to /opt/cni/bin"}
	}
	return finding{found: strings.Join(dirs, ", ")}
}

func checkFilter(Config) finding {
	for _, name := range []string{"nft", "iptables"} {
		if path, err := exec.LookPath(name); err == nil {
			return finding{found: path}
		}
	}
	return finding{degraded, "neither nft nor iptables", "host ports and outgoing traffic of pods on the bridge do not work", "install nftables or iptables"}
}
