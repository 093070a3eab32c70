// Package hack holds the test of the map of imports; the rest of the folder are scripts.
package hack

import (
	"flag"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write imports.golden anew")

const (
	module = "github.com/criserver/criserver/"
	golden = "imports.golden"
)

// arrows says which folders a folder's packages may import, besides their own. An arrow that is not here points upwards.
// What is tested with (test, hack) may import anything.
var arrows = map[string][]string{
	"cmd":          {"control", "cri", "sandbox", "imageservice", "cni", "ociruntime", "pause", "store", "stage"},
	"control":      {"imageservice", "stage", "store"},
	"cri":          {"imageservice", "sandbox", "stage"},
	"sandbox":      {"cni", "ociruntime", "stage", "store"},
	"imageservice": {"command", "stage", "store"},
	"ociruntime":   {"command", "pause"},
	"store":        {"ociruntime/kernel"}, // probes of the kernel, which import nothing of ours
	"cni":          {"command"},
	"command":      {},
	"pause":        {},
	"stage":        {},
}

// imports returns what each of our packages imports of our packages, except in tests.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...")
	cmd.Dir, cmd.Stderr = "..", os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	all := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		from := strings.TrimPrefix(words[0], module)
		all[from] = []string{}
		for _, to := range words[1:] {
			if to, ours := strings.CutPrefix(to, module); ours {
				all[from] = append(all[from], to)
			}
		}
	}
	return all
}

func folder(pkg string) string { first, _, _ := strings.Cut(pkg, "/"); return first }

func TestArrowsPointDown(t *testing.T) {
	for from, list := range imports(t) {
		allowed, known := arrows[folder(from)]
		if folder(from) == "test" || folder(from) == "hack" {
			continue
		}
		if !known {
			t.Errorf("package %s is in a folder that the map does not know", from)
		}
		for _, to := range list {
			if folder(to) != folder(from) && !slices.Contains(allowed, folder(to)) && !slices.Contains(allowed, to) {
				t.Errorf("%s → %s is an arrow upwards", from, to)
			}
		}
	}
}

func TestImportsAreTheGoldenOnes(t *testing.T) {
	var lines []string
	for from, list := range imports(t) {
		lines = append(lines, strings.TrimSpace(from+" → "+strings.Join(list, " "))+"\n")
	}
	slices.Sort(lines)
	got := strings.Join(lines, "")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	old := slices.Collect(strings.Lines(string(want)))
	for _, l := range lines {
		if !slices.Contains(old, l) {
			t.Errorf("new: %s", l)
		}
	}
	for _, l := range old {
		if !slices.Contains(lines, l) {
			t.Errorf("gone: %s", l)
		}
	}
	t.Error("if that is meant, write the map anew with: go test ./hack -update")
}
