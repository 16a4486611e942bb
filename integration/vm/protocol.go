package vm

import (
	"bytes"
	"encoding/json"
)

// What the guest says on its second serial port is the output of its jobs, and
// between it marks of its own: a line that begins with Mark and goes on as JSON.

// Mark begins a line of the guest's own.
const Mark = "\n\x1e"

// A Message is what follows a Mark.
type Message struct {
	Begin  string `json:"begin,omitempty"` // a job's name: its output follows
	End    string `json:"end,omitempty"`   // and has ended
	Status int    `json:"status"`          // its exit status; -1 if it could not be started or was killed
	Ms     int64  `json:"ms,omitempty"`    // how long it took
	Over   bool   `json:"over,omitempty"`  // all jobs have ended
	Error  string `json:"error,omitempty"` // the guest gives up
}

// A Job is a program to run in the machine.
type Job struct {
	Name string   `json:"name"`
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`
}

// A Result is what became of a job.
type Result struct {
	Job    string
	Output []byte // standard output and error
	Ended  bool   // if not, the machine ended or was ended first
	Status int    // of a job that has ended; -1 if it could not be started or was killed
	Ms     int64
}

// parse takes apart what the guest has said so far. over says that it has done all it was told to.
func parse(said []byte) (list []Result, over bool, trouble string) {
	for i, part := range bytes.Split(append([]byte("\n"), said...), []byte(Mark)) {
		line, rest, _ := bytes.Cut(part, []byte("\n"))
		var m Message
		if i == 0 || json.Unmarshal(line, &m) != nil {
			continue
		}
		switch last := len(list) - 1; {
		case m.Begin != "":
			list = append(list, Result{Job: m.Begin, Output: rest})
		case m.End != "" && last >= 0 && list[last].Job == m.End:
			list[last].Ended, list[last].Status, list[last].Ms = true, m.Status, m.Ms
		case m.Over:
			over = true
		case m.Error != "":
			trouble = m.Error
		}
	}
	return list, over, trouble
}
