package hack

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// documents are the pages that people read; paths are relative to the repository.
func documents(t *testing.T) []string {
	t.Helper()
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no documents: %v", err)
	}
	return append(pages, "../README.md")
}

// TestDocumentsPointAtWhatIsThere follows links to files, and looks for make's targets and scripts that are named.
func TestDocumentsPointAtWhatIsThere(t *testing.T) {
	link, target, script := regexp.MustCompile(`\]\(([^)#:]+)[^):]*\)`), regexp.MustCompile("(?m)(?:`|^    )make ([a-z][a-z-]*)"), regexp.MustCompile("`(hack/[a-z]+)`")
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range documents(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", page, m[1], err)
			}
		}
		for _, m := range target.FindAllStringSubmatch(string(text), -1) {
			if !strings.Contains(string(makefile), "\n"+m[1]+":") {
				t.Errorf("%s says make %s, which the Makefile has not", page, m[1])
			}
		}
		for _, m := range script.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join("..", m[1])); err != nil {
				t.Errorf("%s names %s: %v", page, m[1], err)
			}
		}
	}
}

// TestMakeHelp holds every target to its line of help.
func TestMakeHelp(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	targets := strings.Fields(regexp.MustCompile(`(?m)^\.PHONY:(.*)$`).FindStringSubmatch(string(makefile))[1])
	help, err := exec.Command("make", "-s", "-C", "..", "help").CombinedOutput()
	if err != nil {
		t.Fatalf("make help: %v\n%s", err, help)
	}
	for _, target := range targets {
		if !regexp.MustCompile(`(?m)^make ` + target + ` +\S`).Match(help) {
			t.Errorf("make prints no help for %s:\n%s", target, help)
		}
	}
}
