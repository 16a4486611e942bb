package users_test

import (
	"fmt"
	"strings"

	"github.com/snapfs/snapfs/runtime/users"
)

func Example() {
	passwd := "root:x:0:0::/root:/bin/sh\npostgres:x:999:999::/var/lib/postgresql:/bin/bash\n"
	group := "postgres:x:999:\nssl-cert:x:101:postgres\n"
	for _, spec := range []string{"postgres", "postgres:0", "1234", "nobody"} {
		u, err := users.Parse(spec, strings.NewReader(passwd), strings.NewReader(group))
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(u.UID, u.GID, u.Groups, u.Home)
	}
	// Output:
	// 999 999 [101] /var/lib/postgresql
	// 999 0 [] /var/lib/postgresql
	// 1234 0 [] /
	// no such user in the container: file does not exist
}
