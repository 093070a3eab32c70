package blockio

// Annotations that name a class.
const (
	ContainerAnnotation   = "io.kubernetes.cri.blockio-class"                 // of a container
	podAnnotation         = "blockio.resources.beta.kubernetes.io/pod"        // of a pod, for all of its containers
	containerOfAnnotation = "blockio.resources.beta.kubernetes.io/container." // of a pod; the name of the container follows
)

// Class is the class of a container; "" is none.
func Class(name string, container, pod map[string]string) string {
	if class, ok := container[ContainerAnnotation]; ok {
		return class
	}
	if class, ok := pod[containerOfAnnotation+name]; ok {
		return class
	}
	return pod[podAnnotation]
}
