package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Laps of the plugins alone.
const (
	alone  = "plugins alone"
	lapAdd = "ADD"
	lapDel = "DEL"
)

// isolate gives this run directories of its own where daemons and plugins write without being told where, and a loopback device.
func isolate() error {
	for _, dir := range []string{"/run", "/var/lib"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// configureNetwork gives d a bridge of its own, with masquerading, as the peers' documentation has it.
func (b *bench) configureNetwork(d *daemon) error {
	b.networks++
	conf, err := bridgeConf(b.networks, d.path("addresses"))
	if err != nil {
		return err
	}
	return os.WriteFile(d.path("cni/10-bench.conflist"), conf, 0o644)
}

func bridgeConf(n int, addresses string) ([]byte, error) {
	type object = map[string]any
	return json.Marshal(object{"cniVersion": "1.0.0", "name": fmt.Sprintf("bench%d", n), "plugins": []any{object{
		"type": "bridge", "bridge": fmt.Sprintf("bench%d", n), "isGateway": true, "ipMasq": true, "hairpinMode": true,
		"ipam": object{"type": "host-local", "dataDir": addresses, "routes": []any{object{"dst": "0.0.0.0/0"}},
			"ranges": []any{[]any{object{"subnet": fmt.Sprintf("10.201.%d.0/22", 4*(n%64))}}}},
	}}})
}

// pluginsAlone attaches a network namespace to a bridge and detaches it, as every daemon does, and does nothing else.
func (b *bench) pluginsAlone() (contender, error) {
	dir, err := b.mkdir("plugins")
	if err != nil {
		return contender{}, err
	}
	b.networks++
	conf, err := bridgeConf(b.networks, dir+"/addresses")
	if err != nil {
		return contender{}, err
	}
	list, err := libcni.ConfListFromBytes(conf)
	if err != nil {
		return contender{}, err
	}
	plugins := libcni.NewCNIConfigWithCacheDir([]string{b.plugins}, dir+"/cache", nil)
	return contender{alone, func(ctx context.Context) ([]lap, error) {
		ns, err := newNetNS()
		if err != nil {
			return nil, err
		}
		defer close(ns.done)
		pod := &libcni.RuntimeConf{ContainerID: randomID(), NetNS: ns.path, IfName: "eth0"}
		l := startLaps()
		_, err = plugins.AddNetworkList(ctx, list, pod)
		l.step(lapAdd)
		err = errors.Join(err, plugins.DelNetworkList(ctx, list, pod))
		l.step(lapDel)
		return l.all, err
	}}, nil
}

// netNS is a network namespace that lives until done is closed.
type netNS struct {
	path string
	done chan struct{}
}

func newNetNS() (netNS, error) {
	ns := netNS{done: make(chan struct{})}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and the namespace with it
		err := unix.Unshare(unix.CLONE_NEWNET)
		ns.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		ready <- err
		if err == nil {
			<-ns.done
		}
	}()
	return ns, <-ready
}
