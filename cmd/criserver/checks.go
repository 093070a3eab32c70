package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/imageservice/remote/credentials"
	"github.com/criserver/criserver/ociruntime/mount"
	"github.com/criserver/criserver/store/layer"
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

// checkContainerRoots makes a layer and a root of it, as a container gets one, in a directory of its own.
func checkContainerRoots(c Config) finding {
	const cost = "no container can have a root file system"
	dir, err := os.MkdirTemp(existing(c.Root), ".check-")
	if err != nil {
		return finding{missing, err.Error(), cost, "see the root directory"}
	}
	defer func() { _ = os.RemoveAll(dir) }() // empty but for what the store keeps
	s, err := layer.Open(layer.Config{Root: dir, Format: layer.Format(c.Images.Store)})
	if err != nil {
		return finding{missing, strings.ReplaceAll(err.Error(), "\n", "; "), cost,
			"run criserver as root, outside of containers that may not mount overlays, with root on ext4, xfs or btrfs and not on an overlay"}
	}
	defer func() { _ = s.Close() }() // nothing is in it
	return finding{found: s.Describe()}
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

// checkPropagation looks at the mount of /, which other mounts take their propagation from.
func checkPropagation(Config) finding {
	root, err := mount.OpenSource("/")
	if err != nil {
		return finding{degraded, err.Error(), "it is not known whether volumes propagate", "see mount_namespaces(7)"}
	}
	defer func() { _ = root.Close() }()
	if shared, _, err := mount.SharedSource(root); err != nil || !shared {
		return finding{degraded, "/ is not a shared mount", "containers whose volumes propagate mounts (storage plugins) do not start", "mount --make-rshared /"}
	}
	return finding{found: "/ is a shared mount"}
}

func checkCerts(c Config) finding {
	files, err := remote.CheckHosts(c.CertsDirs)
	switch {
	case err != nil:
		return finding{degraded, strings.ReplaceAll(err.Error(), "\n", "; "), "pulls from these registries fail, or ignore what was meant", "mend the files"}
	case files == 0:
		return finding{found: "none configured: every registry is asked over HTTPS, without mirrors"}
	}
	return finding{found: fmt.Sprintf("%d hosts.toml files in %s", files, strings.Join(c.CertsDirs, ", "))}
}

// checkCredentials looks at who can read the file of credentials, and whether it is one.
func checkCredentials(c Config) finding {
	path := c.Registries.CredentialsFile
	if path == "" {
		return finding{found: "no file: requests bring their own"}
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return finding{found: path + " is absent: requests bring their own"}
	case err == nil:
		err = credentials.New(credentials.Config{File: path}).Check()
	}
	if err != nil {
		return finding{degraded, err.Error(), "pulls of images that need credentials fail", "mend the file"}
	}
	if info.Mode().Perm()&0o077 != 0 {
		return finding{degraded, fmt.Sprintf("%s has mode %04o", path, info.Mode().Perm()), "others than root may read the credentials of registries", "chmod 600 " + path}
	}
	return finding{found: path}
}

func checkNetwork(c Config) finding {
	const cost = "only pods on the host network run"
	config, err := networkConfig(c, nil)
	if err != nil {
		return finding{degraded, err.Error(), cost, "mend the configuration"}
	}
	status, err := cni.Look(config)
	switch {
	case err != nil:
		return finding{degraded, err.Error(), cost, "mend the configuration"}
	case !status.Ready && status.Network == "":
		return finding{degraded, status.Message, cost, "install or mend the network's configuration there, or set network.default to on"}
	case !status.Ready:
		return finding{degraded, status.Message, cost, "install it; make build makes those that come with criserver"}
	case status.File == "":
		return finding{found: fmt.Sprintf("embedded default: bridge %s, %s", c.Network.Bridge, strings.Join(c.Network.Subnets, " and "))}
	}
	return finding{found: fmt.Sprintf("%s of %s", status.Network, status.File)}
}

func checkFilter(Config) finding {
	for _, name := range []string{"nft", "iptables"} {
		if path, err := exec.LookPath(name); err == nil {
			return finding{found: path}
		}
	}
	return finding{degraded, "neither nft nor iptables", "host ports and outgoing traffic of pods on the bridge do not work", "install nftables or iptables"}
}
