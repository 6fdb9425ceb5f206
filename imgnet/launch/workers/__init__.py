"""Workers of this machine: started through torch's elastic agent, bound to cores, heard to the end."""
