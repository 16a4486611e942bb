package control

// OpSupervisor is asked of RUN/supervisor.sock: nil → Supervisor.
const OpSupervisor = "supervisor.status"

// SupervisorSocket is that socket's name in RUN.
const SupervisorSocket = "supervisor.sock"

// Supervisor is what keeps the daemon's worker alive, as it sees itself.
type Supervisor struct {
	Supervisor int // pid
	Worker     int // pid, 0 if there is none just now
	Keeper     int // pid
	Restarts   int // workers replaced since the supervisor started
	Failed     int // of them the last ones in a row that did not work at all
	Ready      bool
}
