from maintenance.main import main

main()
