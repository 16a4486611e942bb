package main

import (
	"fmt"
	"os"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"
)

// flatten adds the counters of a Stats struct (a pointer to one with fields of
// type atomic.Int64 or atomic.Uint64) to m, as PART.field.
func flatten(m map[string]int64, part string, stats any) {
	v := reflect.ValueOf(stats).Elem()
	for i := range v.NumField() {
		name := part + "." + strings.ToLower(v.Type().Field(i).Name)
		switch c := v.Field(i).Addr().Interface().(type) {
		case *atomic.Int64:
			m[name] = c.Load()
		case *atomic.Uint64:
			m[name] = int64(c.Load())
		}
	}
}

// residentBytes is the resident memory of a process, 0 if it is gone.
func residentBytes(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}
