# shellcheck shell=bash
# How this project's scripts reach other machines; they source it. Nothing is asked for, a lost connection is noticed within
# 15 s, and nothing of the user's is carried along.

ssh=(ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3)
ssh+=(-o ControlMaster=no -o RequestTTY=no -o ForwardAgent=no -o ForwardX11=no -o ClearAllForwardings=yes)

# For sh, csh and fish alike: each argument between single quotes, and no line breaks.
quoted() { for text in "${@//$'\n'/ }"; do printf "'%s' " "${text//\'/\'\\\'\'}"; done; }

# Whether ssh takes a text as the name of a host, and not as an option.
is_host() { [[ -n "$1" && "$1" != -* && "$1" != *@-* && "$1" != *[[:space:][:cntrl:]]* ]]; }

# The last that ssh or the host said, without what would steer a terminal.
last_words() { # FILE CODE
  local text
  text="$(grep -v '^Warning: Permanently added' "$1" | tail -n 1 | tr -d '[:cntrl:]')"
  echo "${text:-ssh ended with $2}"
}
