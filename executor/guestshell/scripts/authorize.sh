# Runs in a guest: lets SSH keys log in as this user. Arguments: lines for authorized_keys.

umask 077
mkdir -p "$HOME/.ssh" || exit
for key; do
	# The file may end without a newline.
	printf '\n%s\n' "$key" >>"$HOME/.ssh/authorized_keys" || exit
done
