# Completion of weir for bash. The command itself knows what fits.
_weir() {
    mapfile -t COMPREPLY < <(weir complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o default -o nosort -F _weir weir
