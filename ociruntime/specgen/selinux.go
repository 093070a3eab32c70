package specgen

import (
	"cmp"
	"regexp"
	"strings"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/ociruntime/selinux"
)

// Labels are SELinux's: of a container's processes, and of its root and all file systems that are made for it. Empty
// ones leave it to the policy.
type Labels struct {
	Process, Mount string
}

// SELinuxLabels decides the labels of a container, or with a nil container those of what the pod's containers share.
// level is the pod's. What the container says goes over what the pod says, part by part. A host without SELinux (nil) has
// none, and refuses only what can be nowhere.
//
// A process that is not separated by namespaces is not separated by labels either: in a privileged container whatever is
// asked for, and with the host's processes or ipc unless a type is asked for.
func SELinuxLabels(host *selinux.Host, pod *runtimev1.PodSandboxConfig, container *runtimev1.ContainerConfig, level string) (Labels, error) {
	shared, own := pod.GetLinux().GetSecurityContext().GetSelinuxOptions(), container.GetLinux().GetSecurityContext().GetSelinuxOptions()
	for _, o := range []*runtimev1.SELinuxOption{shared, own} {
		if err := checkSELinux(o); err != nil {
			return Labels{}, err
		}
	}
	if host == nil {
		return Labels{}, nil
	}
	o := selinux.Options{
		User:  cmp.Or(own.GetUser(), shared.GetUser()),
		Role:  cmp.Or(own.GetRole(), shared.GetRole()),
		Type:  cmp.Or(own.GetType(), shared.GetType()),
		Level: cmp.Or(own.GetLevel(), level),
	}
	var made Labels
	var err error
	if made.Mount, err = host.File(o); err != nil {
		return Labels{}, invalid(selinuxField, "%v", err)
	}
	ns := container.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if ns == nil {
		ns = podNamespaces(pod)
	}
	onHost := ns.GetPid() == runtimev1.NamespaceMode_NODE || ns.GetIpc() == runtimev1.NamespaceMode_NODE
	if container.GetLinux().GetSecurityContext().GetPrivileged() || onHost && o.Type == "" {
		made.Process = host.Privileged()
		return made, nil
	}
	if made.Process, err = host.Process(o); err != nil {
		return Labels{}, invalid(selinuxField, "%v", err)
	}
	return made, nil
}

const selinuxField = securityField + "selinux_options"

var selinuxLevel = regexp.MustCompile(`^s\d+(-s\d+)?(:c\d+([.,]c\d+)*)?$`)

// checkSELinux refuses what would make another label of the parts than is asked for.
func checkSELinux(o *runtimev1.SELinuxOption) error {
	if level := o.GetLevel(); level != "" && !selinuxLevel.MatchString(level) {
		return invalid(selinuxField+".level", "%q is not a level such as s0:c1,c2", level)
	}
	for _, part := range []struct{ name, value string }{{".user", o.GetUser()}, {".role", o.GetRole()}, {".type", o.GetType()}} {
		if strings.ContainsAny(part.value, ": \n\x00") {
			return invalid(selinuxField+part.name, "%q is not a part of a label", part.value)
		}
	}
	return nil
}
