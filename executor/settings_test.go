package executor

import (
	"testing"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/guestshell"
	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/network"
)

func parse(t *testing.T, text string) *config.Settings {
	t.Helper()
	s, err := config.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// config does not import vm, and so repeats the values that both know.
func TestSettingsUseTheWordsOfVM(t *testing.T) {
	for word, want := range map[string]string{
		config.UserNetwork: network.User,
		config.CacheDisk:   string(cache.Disk),
		config.CacheShare:  string(cache.Share),
	} {
		if word != want {
			t.Errorf("config has %q, vm %q", word, want)
		}
	}
	if word := parse(t, "[defaults]\nconnect = \"qemu:///session\"\n").For("").Network; word != network.User {
		t.Errorf("config has %q, vm %q", word, network.User)
	}
	for _, shell := range config.Shells {
		if guestshell.For(shell).Command == "" {
			t.Errorf("no command for the shell %s", shell)
		}
	}
}
