//go:build ignore

// This program writes tables/ARCH.txt, "number name" per line, from the
// system call numbers of golang.org/x/sys/unix, which come from the kernel's headers.
package main

import (
	"bytes"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var line = regexp.MustCompile(`(?m)^\tSYS_([A-Z0-9_]+)\s*= (\d+)$`)

func main() {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		log.Fatal(err)
	}
	dir := filepath.Join(string(bytes.TrimSpace(out)), "unix")
	for _, arch := range []string{"386", "amd64", "arm", "arm64"} {
		src, err := os.ReadFile(filepath.Join(dir, "zsysnum_linux_"+arch+".go"))
		if err != nil {
			log.Fatal(err)
		}
		type row struct {
			n    int
			name string
		}
		var rows []row
		for _, m := range line.FindAllStringSubmatch(string(src), -1) {
			n, err := strconv.Atoi(m[2])
			if err != nil {
				log.Fatal(err)
			}
			name := strings.ToLower(m[1])
			if name == "syscall_mask" { // a constant, not a call
				continue
			}
			rows = append(rows, row{n, name})
		}
		slices.SortStableFunc(rows, func(a, b row) int { return a.n - b.n })
		var b bytes.Buffer
		for _, r := range rows {
			fmt.Fprintln(&b, r.n, r.name)
		}
		if err := os.WriteFile(filepath.Join("tables", arch+".txt"), b.Bytes(), 0o644); err != nil {
			log.Fatal(err)
		}
	}
}
